"""What happens within Redis: each script is one step that nothing interrupts."""

from dataclasses import dataclass, field
from hashlib import sha1


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the name by which Redis knows it once it has run."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.text.encode(), usedforsecurity=False).hexdigest())


# Publish messages of one market, unless somebody with a higher token has published to it: then that token.
# KEYS: fence, newest. ARGV: token, the last message's number, channel, the command PUBLISH or SPUBLISH, how long keys
# live in seconds, the newest state ("" for none), messages.
# Without messages it only raises the fence, so that whoever led before is refused from then on. A call that arrives
# after a later one of the same leader, over a connection that hung and that it gave up, changes nothing.
PUBLISH = Script("""
local fence = redis.call('GET', KEYS[1])
if fence then
  local token, number = string.match(fence, '^(%d+) ?(%d*)$')
  if tonumber(token) > tonumber(ARGV[1]) then
    return token
  end
  if token == ARGV[1] and number ~= '' and tonumber(number) > tonumber(ARGV[2]) then
    return false
  end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'EX', ARGV[5])
if ARGV[6] ~= '' then
  redis.call('SET', KEYS[2], ARGV[6], 'EX', ARGV[5])
end
for index = 7, #ARGV do
  redis.call(ARGV[4], ARGV[3], ARGV[index])
end
return false
""")

# Publish a heartbeat, unless the lease is somebody else's: then that token.
# KEYS: lease. ARGV: token, channel, PUBLISH or SPUBLISH, heartbeat.
BEAT = Script("""
local lease = redis.call('GET', KEYS[1])
local token = lease and string.match(lease, '^(%d+) ')
if token and token ~= ARGV[1] then
  return token
end
redis.call(ARGV[3], ARGV[2], ARGV[4])
return false
""")

# Renew a lease, or take a free one; return who has it: {token, process}, {'0', ''} for nobody.
# A lease that ran out is given back under its old token if nobody had it since. Tokens grow by the counter and by
# Redis's clock: also a Redis that lost its data gives out none twice.
# KEYS: lease, counter. ARGV: process, its token or 0, how long the lease lasts in ms, 1 if a free one is wanted, the
# highest token that was met.
LEASE = Script("""
local lease = redis.call('GET', KEYS[1])
if lease then
  local token, process = string.match(lease, '^(%d+) (.*)$')
  if process == ARGV[1] then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  end
  return {token, process}
end
local last = redis.call('GET', KEYS[2]) or '0'
local token = ARGV[2]
if token == '0' or token ~= last then
  if ARGV[4] ~= '1' then
    return {'0', ''}
  end
  local now = redis.call('TIME')
  local next = math.max(now[1] * 1000000 + now[2], tonumber(last) + 1, tonumber(ARGV[5]) + 1)
  token = string.format('%.0f', next)
  redis.call('SET', KEYS[2], token)
end
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[3])
return {token, ARGV[1]}
""")

# Give a lease back. KEYS: lease. ARGV: process.
RELEASE = Script("""
local lease = redis.call('GET', KEYS[1])
if lease and string.match(lease, '^%d+ (.*)$') == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
""")

# Say that a process is there; return all that are.
# KEYS: processes. ARGV: process, for how long in ms (0: it goes).
HERE = Script("""
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now_ms + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
""")

# Take a request from a budget; return {wait in ms, what is left in thousandths, closed for ms}, as text.
# KEYS: budget. ARGV: requests per second, how many at once, ms to close it for before (0: not at all), 1 to take one.
BUDGET = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local rate, burst = tonumber(ARGV[1]) / 1000, tonumber(ARGV[2])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'closed')
local tokens, at, closed = tonumber(kept[1] or burst), tonumber(kept[2] or now), tonumber(kept[3] or 0)
local close = now + tonumber(ARGV[3])
if ARGV[3] ~= '0' and close > closed then
  tokens, at, closed = 0, close, close
end
if now > at then
  tokens, at = math.min(burst, tokens + (now - at) * rate), now
end
local wait = 0
if now < closed then
  wait = closed - now
elseif tokens < 1 then
  wait = math.ceil((1 - tokens) / rate)
elseif ARGV[4] == '1' then
  tokens = tokens - 1
end
local function whole(number) return string.format('%.0f', number) end
local closed_for = math.max(closed - now, 0)
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', whole(at), 'closed', whole(closed))
redis.call('PEXPIRE', KEYS[1], whole(closed_for + math.ceil(burst / rate) + 1000))
return {whole(wait), whole(tokens / burst * 1000), whole(closed_for)}
""")

# Count within a window that begins with the first; return {count, ms left}. KEYS: counter. ARGV: window in ms.
COUNT = Script("""
local count = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  left = tonumber(ARGV[1])
end
return {count, left}
""")
