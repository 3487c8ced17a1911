-- What the other scripts share; it stands before each of them. The clock is the store's own: seconds since the epoch.
-- Numbers are written with 17 digits, from which a double comes back as it was.

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function text(number)
  return string.format('%.17g', number)
end

-- As egress_proxy/limits/gcra.py has it.
local function gcra_wait(arrival, now, early, epsilon)
  local left = arrival - early - now
  if left > epsilon then return left end
  return 0
end

local function gcra_counted(arrival, now, interval)
  if arrival > now then return arrival + interval end
  return now + interval
end

-- The replicas that have told of themselves in time: as a set, and how many.
local function living(key, now)
  local replicas, count = {}, 0
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', key, text(now), '+inf')) do
    replicas[name] = true
    count = count + 1
  end
  return replicas, math.max(count, 1)
end

-- The tunnels that all have open, and which entries are those of replicas that died.
local function count_tunnels(key, replicas, self)
  local open, dead = 0, {}
  local entries = redis.call('HGETALL', key)
  for at = 1, #entries, 2 do
    if replicas[entries[at]] or entries[at] == self then
      open = open + tonumber(entries[at + 1])
    else
      dead[#dead + 1] = entries[at]
    end
  end
  return open, dead
end

-- A counter of the day: `name` is the sum over all replicas, `name|replica` what one of them has added to it. `value`
-- is what this replica has added in all, if it knows (`known`), or is to be added to what is there. Up to `most` more
-- is leased beyond it: a part of what is left, so that the last of it is shared fairly, and no crumbs.
-- Returns what the replica has then, how much of it is leased, and the sum. Writes nothing.
local function plan(key, name, replica, known, value, limit, most, least, share)
  local found = redis.call('HMGET', key, name, name .. '|' .. replica)
  local sum, before = tonumber(found[1] or 0), tonumber(found[2] or 0)
  local mine = value
  if not known then mine = before + value end
  sum = sum + mine - before
  local leased = 0
  if most > 0 and limit > sum then
    leased = math.min(most, math.max(least, math.floor((limit - sum) / share)), limit - sum)
  end
  return mine, leased, sum + leased
end

local function note(key, name, replica, mine, sum)
  redis.call('HSET', key, name, text(sum), name .. '|' .. replica, text(mine))
end

-- How many hosts all tenants of a policy together have begun with within the hour, counted by sixths of it: which of
-- these are over, how many hosts the others have, and when the first of those is over.
local function started(key, now, hour)
  local part, over, sum, first = hour / 6, {}, 0, nil
  local entries = redis.call('HGETALL', key)
  for at = 1, #entries, 2 do
    local ends = (tonumber(entries[at]) + 1) * part + hour
    if ends <= now then
      over[#over + 1] = entries[at]
    else
      sum = sum + tonumber(entries[at + 1])
      first = math.min(first or ends, ends)
    end
  end
  return over, sum, first, math.floor(now / part)
end
