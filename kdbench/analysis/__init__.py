"""What is done with trained networks: transfer to other images, and pictures of what they learned."""
