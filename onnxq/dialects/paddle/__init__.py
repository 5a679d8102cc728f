"""PaddleSlim: observers, quanters, QuantConfig, PTQ and QAT."""
