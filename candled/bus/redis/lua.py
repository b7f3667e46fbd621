"""The scripts that run inside Redis. Each one is atomic.

Keys contain values that candled wrote, unless another program wrote to them. A key of another type, a token from the
future, or a lease that does not expire counts as missing and is overwritten, so that invalid values do not persist.
"""

from dataclasses import dataclass, field
from hashlib import sha1


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the hash by which Redis knows it once it has run."""

    #: The source, as `EVAL` takes it.
    text: str
    #: The SHA-1 hash of the source, in hexadecimal digits, as `EVALSHA` takes it.
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.text.encode(), usedforsecurity=False).hexdigest())


# The beginning of a key's text. A key of another type has none.
_TEXT = """
local function text(key)
  local found = redis.pcall('GETRANGE', key, 0, 63)
  if type(found) == 'table' and found.err then
    if not string.find(found.err, 'WRONGTYPE', 1, true) then
      return redis.call('GETRANGE', key, 0, 63)
    end
    found = ''
  end
  return found ~= '' and found
end
"""

# Tokens are microseconds of Redis's clock, or one more than the last token. One that is a day ahead is not candled's.
_CREDIBLE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local function credible(token)
  return token and string.match(token, '^%d+$') and tonumber(token) <= now + 86400000000
end
"""

# Publish messages of one market, unless a higher token has published to it; then return that token.
# KEYS: fence, newest. ARGV: token, the last message's number, 1 to ignore a higher number of the fence, channel, the
# command PUBLISH or SPUBLISH, how long keys live in seconds, the newest state ("" for none), messages.
# Without messages it only raises the fence, so that the previous leader is rejected from then on. A call that arrives
# after a later one of the same leader, over a hung connection that it gave up, changes nothing: then return `late` and
# the number of the later one.
PUBLISH = Script(f"""{_TEXT}{_CREDIBLE}
local token, number = string.match(text(KEYS[1]) or '', '^(%d+) ?(%d*)$')
if credible(token) then
  if tonumber(token) > tonumber(ARGV[1]) then
    return token
  end
  if token == ARGV[1] and number ~= '' and tonumber(number) > tonumber(ARGV[2]) and ARGV[3] ~= '1' then
    return 'late ' .. number
  end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'EX', ARGV[6])
if ARGV[7] ~= '' then
  redis.call('SET', KEYS[2], ARGV[7], 'EX', ARGV[6])
end
for index = 8, #ARGV do
  redis.call(ARGV[5], ARGV[4], ARGV[index])
end
return false
""")

# Publish a heartbeat, unless the lease belongs to another process; then return that token.
# KEYS: lease. ARGV: token, channel, PUBLISH or SPUBLISH, heartbeat.
HEARTBEAT = Script(f"""{_TEXT}{_CREDIBLE}
local token = string.match(text(KEYS[1]) or '', '^(%d+) ')
if credible(token) and token ~= ARGV[1] then
  return token
end
redis.call(ARGV[3], ARGV[2], ARGV[4])
return false
""")

# Renew a lease, or take a free one; return its holder: {token, process}, or {'0', ''} if it is free.
# A lease that expired is given back under its old token if no other process had it since. Tokens grow by the counter
# and by Redis's clock, so even a Redis that lost its data assigns none twice. No lease lasts for more than two minutes.
# KEYS: lease, counter. ARGV: process, its token or 0, how long the lease lasts in ms, 1 if a free one is wanted, the
# highest known token.
LEASE = Script(f"""{_TEXT}{_CREDIBLE}
local token, process = string.match(text(KEYS[1]) or '', '^(%d+) (.+)$')
if credible(token) then
  local left = redis.call('PTTL', KEYS[1])
  if left >= 0 and left <= 120000 then
    if process == ARGV[1] then
      redis.call('PEXPIRE', KEYS[1], ARGV[3])
    end
    return {{token, process}}
  end
end
local last = text(KEYS[2])
if not credible(last) then
  last = '0'
end
token = ARGV[2]
if token == '0' or token ~= last then
  if ARGV[4] ~= '1' then
    return {{'0', ''}}
  end
  token = string.format('%.0f', math.max(now, tonumber(last) + 1, tonumber(ARGV[5]) + 1))
  redis.call('SET', KEYS[2], token)
end
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[3])
return {{token, ARGV[1]}}
""")

# Release a lease. KEYS: lease. ARGV: process.
RELEASE = Script(f"""{_TEXT}
if string.match(text(KEYS[1]) or '', '^%d+ (.+)$') == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
""")

# Register a process; return all registered ones, a thousand at most. No registration lasts for more than two minutes.
# KEYS: processes. ARGV: process, for how long in ms (0: deregister).
REGISTER = Script("""
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then
  redis.call('DEL', KEYS[1])
end
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
redis.call('ZREMRANGEBYSCORE', KEYS[1], now_ms + 120000, '+inf')
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now_ms + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return redis.call('ZRANGE', KEYS[1], 0, 999)
""")

# Take a request from a budget; return {wait in ms, the rest in thousandths, closed for ms}, as text.
# KEYS: budget. ARGV: requests per second, the burst size, ms to close it for before (0: not at all), 1 to take one, its
# weight. A weight above the burst needs a full budget, which is then in debt. It is closed for an hour at most.
BUDGET = Script("""
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  redis.call('DEL', KEYS[1])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local rate, burst, weight = tonumber(ARGV[1]) / 1000, tonumber(ARGV[2]), tonumber(ARGV[5])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'closed')
local function within(text, least, most, default)
  local number = tonumber(text or '')
  return number and number >= least and number <= most and number or default
end
local latest = now + 3600000
local tokens = within(kept[1], -math.max(100, 60000 * rate), burst, burst)
local closed = within(kept[3], 0, latest, 0)
local at = within(kept[2], 0, math.max(now, closed), now)
local close = math.min(now + tonumber(ARGV[3]), latest)
if ARGV[3] ~= '0' and close > closed then
  tokens, at, closed = 0, close, close
end
if now > at then
  tokens, at = math.min(burst, tokens + (now - at) * rate), now
end
local wait = 0
if now < closed then
  wait = closed - now
elseif weight > 0 and tokens < math.min(weight, burst) then
  wait = math.ceil((math.min(weight, burst) - tokens) / rate)
elseif ARGV[4] == '1' then
  tokens = tokens - weight
end
local function whole(number) return string.format('%.0f', number) end
local closed_for = math.max(closed - now, 0)
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', whole(at), 'closed', whole(closed))
redis.call('PEXPIRE', KEYS[1], whole(closed_for + math.ceil((burst - math.min(tokens, 0)) / rate) + 1000))
return {whole(wait), whole(math.max(tokens, 0) / burst * 1000), whole(closed_for)}
""")
