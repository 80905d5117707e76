"""The engine over real sockets: every transport of openai's clients, every caller, every race."""
