"""The offline vendor: OpenAI-, Anthropic- and Gemini-shaped HTTP."""
