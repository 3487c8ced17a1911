-- Tell what this replica has counted for one tenant of one policy, lease more of its budgets, and give back the rest.
-- Whatever is told is the whole of it, so that to tell it twice changes nothing.
-- KEYS: the living, arrival time, tunnels, day, hosts, hosts of all tenants of the policy.
-- ARGV: the replica, the life of tunnels' keys, seconds in an hour, its tunnels, seconds by which its arrival time is
-- ahead of now, by how many it may be, whether its requests are known to be all it has counted, its requests, when the
-- day's key expires (ms), how many hosts, how many budgets; for each budget: name, limit, known, value, most, least;
-- for each host: its digest, since when it is known. What is not to be told is `-`.
-- Returns `now arrival tunnels requests mine hosts`, and for each budget `mine leased sum`.

local now = clock()
local replica, life, hour, tunnels = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local debt, most_debt = tonumber(ARGV[5]), tonumber(ARGV[6])
local known, requests, day_ends = ARGV[7] == '1', ARGV[8], ARGV[9]
local hosts, budgets = ARGV[10], tonumber(ARGV[11])
local replicas, living_count = living(KEYS[1], now)
local at, reply = 12, {text(now)}

local function answer(value) reply[#reply + 1] = value end

-- Never further ahead than it may be: a store's successor may have another clock.
local arrival = math.min(tonumber(redis.call('GET', KEYS[2]) or 0), now + most_debt)
if debt > 0 then
  arrival = math.min(math.max(arrival, now) + debt, now + most_debt)
  redis.call('SET', KEYS[2], text(arrival), 'PX', math.ceil((arrival - now) * 1000) + 1000)
end
answer(text(arrival))

if tunnels == '-' then answer('-') else
  if tonumber(tunnels) > 0 then
    redis.call('HSET', KEYS[3], replica, tunnels)
    redis.call('EXPIRE', KEYS[3], life)
  else
    redis.call('HDEL', KEYS[3], replica)
  end
  answer((count_tunnels(KEYS[3], replicas, replica)))
end

local counted = false
if requests == '-' then answer('- -') else
  local mine, _, sum = plan(KEYS[4], 'requests', replica, known, tonumber(requests), 0, 0, 0, 1)
  note(KEYS[4], 'requests', replica, mine, sum)
  counted = true
  answer(text(sum) .. ' ' .. text(mine))
end
local leases = {}
for _ = 1, budgets do
  local name, limit, is_known = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'
  local value, most, least = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  at = at + 6
  local mine, leased, sum = plan(KEYS[4], name, replica, is_known, value, limit, most, least, 2 * living_count)
  note(KEYS[4], name, replica, mine + leased, sum)
  counted = true
  leases[#leases + 1] = text(mine) .. ' ' .. text(leased) .. ' ' .. text(sum)
end
if counted then redis.call('PEXPIREAT', KEYS[4], day_ends) end

if hosts == '-' then answer('-') else
  -- First those that are over: what was begun with anew is added again.
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', text(now - hour))
  local added = 0
  for _ = 1, tonumber(hosts) do
    if tonumber(ARGV[at + 1]) > now - hour then
      added = added + redis.call('ZADD', KEYS[5], 'NX', ARGV[at + 1], ARGV[at])
    end
    at = at + 2
  end
  if added > 0 then
    redis.call('EXPIRE', KEYS[5], math.ceil(hour) + 1)
    local _, _, _, part = started(KEYS[6], now, hour)
    redis.call('HINCRBY', KEYS[6], part, added)
    redis.call('EXPIRE', KEYS[6], 2 * hour)
  end
  answer(redis.call('ZCARD', KEYS[5]))
end
for _, lease in ipairs(leases) do answer(lease) end
return table.concat(reply, ' ')
