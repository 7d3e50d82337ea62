"""The judge of the judge strategy: prompt, client, cache and circuit breaker."""
