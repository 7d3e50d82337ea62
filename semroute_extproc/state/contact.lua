-- Records that a process is in contact with the store, and says when the store began.
-- KEYS: contacts (process to its time), and when the store began.
-- ARGV: process, its time, the store's time that it saw last, most seconds since then, restarted, seconds to keep.
local now = redis.call('TIME')
now = now[1] + now[2] / 1e6
local store = redis.call('GET', KEYS[2])
if not store or ARGV[5] == '1' then
  store = string.format('%.3f', now)
  redis.call('SET', KEYS[2], store)
end
redis.call('EXPIRE', KEYS[2], ARGV[6])
-- A process whose call was delayed no longer knows that it counts as present.
if now - (tonumber(ARGV[3]) or 0) <= tonumber(ARGV[4]) then
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[2] - ARGV[6])
  redis.call('EXPIRE', KEYS[1], ARGV[6])
end
return {string.format('%.3f', now), store}
