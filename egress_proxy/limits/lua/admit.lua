-- Count one request for several tenants (one for each policy), or for none.
-- KEYS: the living; then for each charge: arrival time, tunnels, day, hosts, hosts of all tenants of the policy.
-- ARGV: the replica, the host's digest, whether it is a tunnel, epsilon, seconds in an hour, how many hosts all tenants
-- of a policy may begin with in it, the life of tunnels' keys, how many charges; then for each: interval, early, tunnels, requests a day, when the day's key expires (ms), hosts an
-- hour, and how many budgets of bytes; then for each of these: name, limit, known, value, most, least.
-- A limit that does not hold is `-`. Returns `0 now charge kind wait`, or `1 now` and for each charge
-- `arrival tunnels requests mine hosts since`, and for each budget `mine leased sum`.

local now = clock()
local replica, host, is_tunnel = ARGV[1], ARGV[2], ARGV[3] == '1'
local epsilon, hour, most_hosts = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local life, charges = ARGV[7], tonumber(ARGV[8])
local replicas, living_count = living(KEYS[1], now)
local at, reply, writes = 9, {'1', text(now)}, {}

local function answer(value) reply[#reply + 1] = value end
local function write(...) writes[#writes + 1] = {...} end
local function refuse(charge, kind, wait)
  return '0 ' .. text(now) .. ' ' .. charge .. ' ' .. kind .. ' ' .. text(wait)
end

for charge = 1, charges do
  local key = 5 * charge - 3
  local arrival_key, tunnels_key, day_key = KEYS[key], KEYS[key + 1], KEYS[key + 2]
  local hosts_key, started_key = KEYS[key + 3], KEYS[key + 4]
  local interval, early, tunnels, requests = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local day_ends, hosts, budgets = ARGV[at + 4], ARGV[at + 5], tonumber(ARGV[at + 6])
  at = at + 7

  if interval == '-' then answer('-') else
    -- Of the rate before, the debt may be of any length: nobody owes more than one whole burst.
    local most = now + tonumber(early) + tonumber(interval)
    local arrival = math.min(tonumber(redis.call('GET', arrival_key) or 0), most)
    local wait = gcra_wait(arrival, now, tonumber(early), epsilon)
    if wait > 0 then return refuse(charge, 'request_rate', wait) end
    arrival = gcra_counted(arrival, now, tonumber(interval))
    write('SET', arrival_key, text(arrival), 'PX', math.ceil((arrival - now) * 1000) + 1000)
    answer(text(arrival))
  end

  if tunnels == '-' or not is_tunnel then answer('-') else
    local open, dead = count_tunnels(tunnels_key, replicas, replica)
    if #dead > 0 then write('HDEL', tunnels_key, unpack(dead)) end
    if open >= tonumber(tunnels) then return refuse(charge, 'tunnel_limit', 0) end
    write('HINCRBY', tunnels_key, replica, 1)
    write('EXPIRE', tunnels_key, life)
    answer(open + 1)
  end

  local counted = false
  if requests == '-' then answer('- -') else
    local limit = tonumber(requests)
    local mine, _, sum = plan(day_key, 'requests', replica, false, 1, limit, 0, 0, 1)
    if sum > limit then return refuse(charge, 'request_budget', 0) end
    write('HSET', day_key, 'requests', text(sum), 'requests|' .. replica, text(mine))
    counted = true
    answer(text(sum) .. ' ' .. text(mine))
  end

  local leases = {}
  for _ = 1, budgets do
    local name, limit, known = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'
    local value, most, least = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    at = at + 6
    local mine, leased, sum = plan(day_key, name, replica, known, value, limit, most, least, 2 * living_count)
    if leased == 0 and sum >= limit then return refuse(charge, 'byte_budget', 0) end
    write('HSET', day_key, name, text(sum), name .. '|' .. replica, text(mine + leased))
    counted = true
    leases[#leases + 1] = text(mine) .. ' ' .. text(leased) .. ' ' .. text(sum)
  end
  if counted then write('PEXPIREAT', day_key, day_ends) end

  if hosts == '-' then answer('- -') else
    redis.call('ZREMRANGEBYSCORE', hosts_key, '-inf', text(now - hour))
    local since = redis.call('ZSCORE', hosts_key, host)
    local count, limit = redis.call('ZCARD', hosts_key), tonumber(hosts)
    if not since then
      if count >= limit then
        -- With a smaller limit than before, so many more have to be forgotten first.
        local last = redis.call('ZRANGE', hosts_key, count - limit, count - limit, 'WITHSCORES')
        return refuse(charge, 'new_hosts_limit', tonumber(last[2]) + hour - now)
      end
      local over, sum, first, part = started(started_key, now, hour)
      if sum >= most_hosts then return refuse(charge, 'all_hosts', first - now) end
      if #over > 0 then write('HDEL', started_key, unpack(over)) end
      write('HINCRBY', started_key, part, 1)
      write('EXPIRE', started_key, 2 * hour)
      since, count = text(now), count + 1
      write('ZADD', hosts_key, since, host)
      write('EXPIRE', hosts_key, math.ceil(hour) + 1)
    end
    answer(count .. ' ' .. since)
  end
  for _, lease in ipairs(leases) do answer(lease) end
end

-- Nothing refuses.
for _, command in ipairs(writes) do redis.call(unpack(command)) end
return table.concat(reply, ' ')
