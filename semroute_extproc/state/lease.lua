-- Gives a process an allowance in one window of a limit. The sum of all allowances never exceeds the limit,
-- counting a reserve for each process that the store has not heard of (docs/adr/0019).
-- KEYS: the window, contacts (process to its time), and when the store began.
-- ARGV: process, sequence number, limit, processes, begin of the window, its seconds, starter, settling seconds,
-- and the process's report: allowance, spent, the sum it last saw, part and least of the lease it wants.
local id, seq, most, processes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local began, seconds, starter, settling = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local allowance, spent, seen = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local part, least = tonumber(ARGV[12]), tonumber(ARGV[13])
local function get(field) return tonumber(redis.call('HGET', KEYS[1], field) or '0') end
local now = redis.call('TIME')
now = now[1] + now[2] / 1e6
local store = tonumber(redis.call('GET', KEYS[3]) or '')
if not store then
  store = now
  redis.call('SET', KEYS[3], string.format('%.3f', now))
end
-- A report that was delayed until after a later one says nothing.
if get('seq:' .. id) >= seq then return redis.error_reply('STALE report') end
local joined = redis.call('HEXISTS', KEYS[1], 'of:' .. id) == 1
local change = allowance - get('of:' .. id)
-- `sum` is of the allowances that are known. `floor` is the sum that a process saw before the store lost its data.
local sum, floor = get('sum') + change, get('floor')
local members = get('members')
if joined then floor = floor + change else members = members + 1 end
local settled = now - store >= settling
if not settled then floor = math.max(floor, seen) end
local heard = redis.call('ZCOUNT', KEYS[2], began, '+inf')
if (tonumber(redis.call('ZSCORE', KEYS[2], id) or '0')) < began then heard = heard + 1 end
local share = most / processes
local reserve = math.max(processes - heard, 0) * share
reserve = reserve + math.max(math.min(heard, processes) - members, 0) * share * starter
local free = math.max(most - math.max(sum, floor) - reserve, 0)
local grant = 0
if settled then grant = math.min(free, math.max(part * free / processes, least) - (allowance - spent)) end
if grant > 0 then
  allowance, sum, floor, free = allowance + grant, sum + grant, floor + grant, free - grant
end
local function text(number) return string.format('%.17g', number) end
redis.call('HSET', KEYS[1], 'seq:' .. id, seq, 'of:' .. id, text(allowance), 'sum', text(sum),
  'floor', text(floor), 'members', members)
redis.call('EXPIRE', KEYS[1], math.ceil(2 * seconds))
return {text(allowance), text(math.max(sum, floor)), text(free)}
