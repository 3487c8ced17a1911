-- This replica lives. KEYS: the living. ARGV: the replica, seconds until it counts as dead, seconds to keep the key.
-- Returns whether it was known to live, and the time.

local now = clock()
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. text(now))
redis.call('ZADD', KEYS[1], text(now + tonumber(ARGV[2])), ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local was = 0
if known and tonumber(known) >= now then was = 1 end
return was .. ' ' .. text(now)
