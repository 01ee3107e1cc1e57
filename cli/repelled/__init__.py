"""`feynkac run` of repelled configs: a pipeline batch after batch, each repelled from where those before it were."""
