"""Tasks in Redis or Valkey: `RedisBackend`. Every move is one script on the server, many to a round trip."""

try:
    import hiredis  # noqa: F401
    import redis.asyncio  # noqa: F401
except ImportError as error:
    raise ImportError("RedisBackend needs redis-py and hiredis: pip install 'sitq-queue[redis]'") from error

from sitq.backends.redis._backend import RedisBackend

__all__ = ["RedisBackend"]
