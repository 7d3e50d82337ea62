-- Adds a process's new scores to those of all, and returns the bias and the scores that it has not seen.
-- KEYS: bias and count, scores. ARGV: process, scores (32-bit floats), their number, the change of the bias, the
-- process's bias, the bound of the bias, the last entry that was read, most entries kept, returned, and seconds.
local count = redis.call('HINCRBY', KEYS[1], 'count', ARGV[3])
local bias = tonumber(redis.call('HGET', KEYS[1], 'bias') or ARGV[5]) + tonumber(ARGV[4])
local bound = tonumber(ARGV[6])
bias = string.format('%.17g', math.min(math.max(bias, -bound), bound))
redis.call('HSET', KEYS[1], 'bias', bias)
local since = '-'
if ARGV[7] ~= '' then since = '(' .. ARGV[7] end
local found = redis.call('XREVRANGE', KEYS[2], '+', since, 'COUNT', ARGV[9])
if tonumber(ARGV[3]) > 0 then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], '*', 'process', ARGV[1], 'scores', ARGV[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[10])
redis.call('EXPIRE', KEYS[2], ARGV[10])
return {bias, count, found}
