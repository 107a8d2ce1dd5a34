-- Removes tombstones that are old.
-- KEYS: tombstones, then the hash of each. ARGV: for each its member and its field.
for i = 2, #KEYS do
  local member, field = ARGV[2 * i - 3], ARGV[2 * i - 2]
  local value = redis.call('HGET', KEYS[i], field)
  if value and (field == 'e' or string.sub(value, 41, 41) == '-') then
    redis.call('HDEL', KEYS[i], field)
  end
  redis.call('ZREM', KEYS[1], member)
end
return #KEYS - 1
