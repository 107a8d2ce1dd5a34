-- Merges writes of one proxy into the hashes of identities, and adds what won to the stream.
--
-- KEYS: generation, stream, writer, tombstones, then a hash for each identity.
-- ARGV: generation, sequence, writer, seconds to live (0: for ever), seconds of a tombstone; then for each
-- identity: its name, 'c' (make it) or 't' (only if it is there), when it was seen, the stamp of its erasure
-- or '', the number of fields, and for each field '=' or '+' with its key, and its value.
-- A value is clock (16 hex digits), proxy (8), birth (16), type, text; that of '+' is clock, proxy, amount.
-- Hashes have the fields s (seen), p (seen again), e (stamp of the last erasure), and '=' with each key.
-- Returns the id of the stream's entry or '', and for each identity '1' if it was there before; of a batch
-- that was written before only the id.
local sub = string.sub
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('GENERATION the data of edge-proxy are those of another generation')
end
local last = redis.call('HGET', KEYS[3], 'sequence')
if last and tonumber(last) >= tonumber(ARGV[2]) then
  return {redis.call('HGET', KEYS[3], 'id') or '', ''}
end
redis.call('HSET', KEYS[3], 'sequence', ARGV[2])
redis.call('EXPIRE', KEYS[3], 86400)
local ttl, age = tonumber(ARGV[4]), tonumber(ARGV[5])
local now = redis.call('TIME')[1]
local out, known = {}, {}

local function put(part)
  out[#out + 1] = #part .. ':'
  out[#out + 1] = part
end

-- The clock after this one. Numbers of Lua have 53 bits.
local function after(clock)
  local high, low = tonumber(sub(clock, 1, 8), 16), tonumber(sub(clock, 9, 16), 16) + 1
  if low >= 4294967296 then
    high, low = high + 1, 0
  end
  return string.format('%08x%08x', high, low)
end

-- The value after an addition; nil if the stored one is not an integer, or the sum is beyond 64 bits.
local function add(stored, addition)
  local number, born = '0', nil
  local clock = sub(addition, 1, 16)
  if stored then
    local kind = sub(stored, 41, 41)
    if kind == 'i' then
      number, born = sub(stored, 42), sub(stored, 25, 40)
    elseif kind ~= '-' then
      return nil
    end
    if sub(stored, 1, 16) > clock then
      clock = sub(stored, 1, 16)
    end
  end
  clock = after(clock)
  redis.call('HSET', KEYS[3], 'sum', number)
  local sum = redis.pcall('HINCRBY', KEYS[3], 'sum', sub(addition, 25))
  if type(sum) ~= 'number' then
    return nil
  end
  return clock .. sub(addition, 17, 24) .. (born or clock) .. 'i' .. redis.call('HGET', KEYS[3], 'sum')
end

-- Removes what is older than the erasure. Returns whether something is left.
local function erase(key, erasure)
  local all, is_left = redis.call('HGETALL', key), false
  for n = 1, #all, 2 do
    if sub(all[n], 1, 1) == '=' then
      if sub(all[n + 1], 1, 24) > erasure then
        is_left = true
      else
        redis.call('HDEL', key, all[n])
      end
    end
  end
  if not is_left then
    redis.call('HDEL', key, 's', 'p')
  end
  return is_left
end

local at = 6
for i = 5, #KEYS do
  local key, name, mode, seen = KEYS[i], ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local erasure, count = ARGV[at + 3], tonumber(ARGV[at + 4])
  at = at + 5
  local fields = {'s', 'e', 'p'}
  for n = 1, count do
    fields[n + 3] = '=' .. sub(ARGV[at + 2 * n - 2], 2)
  end
  local stored = redis.call('HMGET', key, unpack(fields))
  local was_seen, mark, promoted = stored[1], stored[2] or '', stored[3]
  known[#known + 1] = was_seen and '1' or '0'
  local is_there = was_seen
  if erasure ~= '' and erasure > mark then
    mark = erasure
    is_there = erase(key, erasure) and was_seen
    redis.call('HSET', key, 'e', mark)
    redis.call('ZADD', KEYS[4], now, name .. '\0e')
    put(name)
    put('e' .. mark)
  end
  local fresh, won, sets = {}, {}, {}
  for n = 1, count do
    local field, value = fields[n + 3], ARGV[at + 1]
    local operation = sub(ARGV[at], 1, 1)
    at = at + 2
    local old = fresh[field]
    if old == nil then
      old = stored[n + 3]
    end
    if old and sub(old, 1, 24) <= mark then
      old = false
    end
    if mode == 't' and not is_there then
      value = nil
    elseif operation == '+' then
      value = add(old, value)
    elseif old and sub(old, 1, 24) >= sub(value, 1, 24) then
      value = nil
    end
    if value and sub(value, 1, 24) > mark then
      fresh[field] = value
      sets[#sets + 1], sets[#sets + 2] = field, value
      won[#won + 1], won[#won + 2] = operation .. sub(field, 2), value
      if sub(value, 41, 41) == '-' then
        redis.call('ZADD', KEYS[4], now, name .. '\0' .. field)
      end
    end
  end
  -- An identity without traits is made too, unless it was erased since.
  local is_later = mark == '' or tonumber(seen) > tonumber(sub(mark, 1, 12), 16) / 1000
  local is_made = not is_there and mode == 'c' and (#won > 0 or (count == 0 and erasure == '' and is_later))
  if is_there or is_made then
    local is_newer = tonumber(seen) > tonumber(was_seen or 0)
    if is_newer or is_made then
      sets[#sets + 1], sets[#sets + 2] = 's', seen
      if is_there and not promoted then
        sets[#sets + 1], sets[#sets + 2] = 'p', '1'
      end
    end
    if #sets > 0 then
      redis.call('HSET', key, unpack(sets))
      put(name)
      put((is_there and 'o' or 'n') .. seen .. ' ' .. #won / 2)
      for _, part in ipairs(won) do
        put(part)
      end
    end
    if ttl > 0 then
      redis.call('EXPIRE', key, ttl)
    else
      redis.call('PERSIST', key)
    end
  elseif mark ~= '' then
    redis.call('EXPIRE', key, age)
  end
end
local id = ''
if #out > 0 then
  id = redis.call('XADD', KEYS[2], '*', 'w', ARGV[3], 'd', table.concat(out))
end
redis.call('HSET', KEYS[3], 'id', id)
return {id, table.concat(known)}
