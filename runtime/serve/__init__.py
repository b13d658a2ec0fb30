"""A server that speaks OpenAI's protocol, with a page of its own: `vl3edge serve`. It needs the extra [serve]."""
