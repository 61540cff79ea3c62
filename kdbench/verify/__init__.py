"""Golden vectors of the authors' code against the distillers that train."""
