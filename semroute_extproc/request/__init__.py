"""A request as the router sees it: body, APIs, text, language and reasoning switches. Pure."""
