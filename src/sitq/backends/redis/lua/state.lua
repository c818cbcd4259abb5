-- The state of a namespace, and the moves every operation is made of. `_scripts.py` joins the files of this folder into
-- one script, which runs a batch of operations: KEYS[1] is the namespace, ARGV the run id of the server, the clock's
-- offset, then the operations. A script is atomic but not undone after an error: look first, write when nothing can fail.
--
-- Times are microseconds since 1970 by the server's clock, in text and in scores: a double holds them exactly.

local P, call, format = KEYS[1], redis.call, string.format
local READY, DUE, EXPIRING, LEASES = P .. ':ready:', P .. ':due', P .. ':expiring', P .. ':leases'
local TASK, HELD, DONE, ALL = P .. ':task:', P .. ':held:', P .. ':done', P .. ':all'
local UNIQUE, QUEUES, PAUSED = P .. ':unique:', P .. ':queues', P .. ':paused'
local WORKERS, SEEN, WAITING = P .. ':workers', P .. ':seen', P .. ':waiting'

local SECOND, DAY = 1000000, 86400
local RETENTION = { ['2'] = DAY, ['3'] = 7 * DAY } -- seconds
local SAFETY = 7 * DAY * 1000 -- milliseconds a finished task outlives its retention when nobody purges
local BATCH = 500

local clock = call('TIME')
local now = clock[1] * SECOND + clock[2] + tonumber(ARGV[2])
local fresh, herd, ended, known = {}, false, {}, {} -- whom to wake, and queues this batch has listed

local function int(number) return format('%.0f', number) end

-- What is read of a task. Up to the payload it is what a reservation shows; moves need the rest.
local SHOWN = { 's', 'q', 'p', 'd', 'c', 'm', 'o', 'x', 'a', 'k', 'sk', 'fe', 'fn', 'w', 'l', 'cr', 'g', 'why', 'r', 'y' }
local MOVED = { 's', 'q', 'p', 'd', 'n', 'x', 'rt', 'u', 'uu', 'fe', 'fn', 'a', 'k', 'sk', 'w', 'cr', 'c', 'wt', 'r', 'l' }

local function load(id)
  local key = TASK .. id
  local v = call('HMGET', key, unpack(MOVED))
  if not v[1] then return nil end
  return {
    id = id, key = key, s = v[1], q = v[2], p = v[3], d = v[4], n = v[5], x = v[6], rt = v[7], u = v[8], uu = v[9],
    fe = v[10], fn = v[11], a = v[12] or 0, k = v[13] or 0, sk = v[14] or 0, w = v[15], cr = v[16], c = v[17],
    wt = v[18], r = v[19], l = v[20],
  }
end

-- --- fences ----------------------------------------------------------------------------------------------------------

-- A server that lost its last moments would hand out their fences again. Its run id changes with every start and every
-- failover; the epoch is the moment that was noticed (milliseconds since 2026), so none comes twice even where the
-- store forgot that it had been one.
local EPOCH_ZERO = 1767225600000
local epoch_now

local function epoch()
  if not epoch_now then
    local m = call('HMGET', P, 'run', 'epoch')
    epoch_now = tonumber(m[2] or 0)
    if m[1] ~= ARGV[1] then
      epoch_now = math.max(epoch_now + 1, math.floor(clock[1] * 1000 + clock[2] / 1000) - EPOCH_ZERO)
      call('HSET', P, 'run', ARGV[1], 'epoch', int(epoch_now))
    end
  end
  return epoch_now
end

-- A fence is an epoch and a number below 2^22.
local function next_fence(fe, fn)
  local e = epoch()
  fe, fn = tonumber(fe or 0), tonumber(fn or 0)
  if fe < e then return int(e), '1' end
  if fn < 4194303 then return int(fe), int(fn + 1) end
  return int(fe + 1), '0'
end

-- --- queued: ready, or waiting for its time --------------------------------------------------------------------------

-- All scores in a ready set are 0, so it is in the order of its members: priority descending, due, arrival.
local function rank(t) return (9 - t.p) .. t.d .. t.n .. t.id end
local RANK = 31 -- characters before the id

local function push_ready(t)
  call('ZADD', READY .. t.q, 0, rank(t))
  if not known[t.q] then
    call('SADD', QUEUES, t.q)
    known[t.q] = true
  end
  fresh[t.q] = (fresh[t.q] or 0) + 1
end

local function arm(t)
  if t.x then call('ZADD', EXPIRING, t.x, t.id) end
  if tonumber(t.d) <= now then return push_ready(t) end
  call('ZADD', DUE, t.d, t.id)
  if call('ZRANGE', DUE, 0, 0)[1] == t.id then herd = true end -- whoever waits, waits for a later moment
end

-- Take a task out of the set its status has it in.
local function leave(t)
  if t.s == '0' then
    if call('ZREM', READY .. t.q, rank(t)) == 0 then call('ZREM', DUE, t.id) end
    if t.x then call('ZREM', EXPIRING, t.id) end
  elseif t.s == '1' then -- once its lease has ended, it is ready for a takeover
    if call('ZREM', LEASES, t.id) == 0 then call('ZREM', READY .. t.q, rank(t)) end
    call('SREM', HELD .. t.w, t.id)
  else
    call('ZREM', DONE, t.id)
    call('PERSIST', t.key)
  end
end

-- Make a task queued, to run after `delay` microseconds. `...` are more fields to set.
local function queue(t, delay, why, ...)
  leave(t)
  if delay > 0 or tonumber(t.d) > now then t.d = format('%016.0f', now + delay) end
  call('HSET', t.key, 's', '0', 'w', '', 'l', '', 'cr', '', 'why', why, 'd', t.d, ...)
  t.s = '0'
  arm(t)
end

-- --- ended -----------------------------------------------------------------------------------------------------------

local EXPIRED = 'x' -- stands for a result whose words are put together when it is read

local function cancelled(t) -- the header of a result, as `_rows.py` writes it
  return format('[0,%d,%s,null,%s,"cancelled","cancelled"]', t.a, t.c, int(now))
end

-- Tell those who wait for the result of a task.
local function tell(t)
  if not t.wt or t.wt == '' then return end
  for handle in string.gmatch(t.wt, '[^,]+') do
    local ids = ended[handle] or {}
    ids[#ids + 1] = t.id
    ended[handle] = ids
  end
end

local function expire_in(key, milliseconds)
  if milliseconds < 3e12 then call('PEXPIRE', key, int(milliseconds)) end -- a century is for ever
end

-- Write that a task is completed or failed, for as long as its retention says; return until when. `...` are more fields.
local function close(t, status, why, ...)
  call('HSET', t.key, 's', status, 'w', '', 'l', '', 'why', why, 'wt', '', ...)
  local held_until = tonumber(t.uu or 0)
  local purge_at = math.max(now + (t.rt or RETENTION[status]) * SECOND, held_until)
  local left = (purge_at - now) / 1000 + SAFETY
  expire_in(t.key, left)
  if t.u and call('GET', UNIQUE .. t.u) == t.id then
    if held_until <= now then call('DEL', UNIQUE .. t.u) else expire_in(UNIQUE .. t.u, left) end
  end
  tell(t)
  t.s = status
  return int(purge_at)
end

local function finish(t, status, why, ...)
  leave(t)
  call('ZADD', DONE, close(t, status, why, ...), t.id)
end

local function end_cancelled(t) finish(t, '3', 'cancelled', 'e', cancelled(t), 'v', '') end

-- --- time passes -----------------------------------------------------------------------------------------------------

local function each_up_to_now(set, move)
  repeat
    local ids = call('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', 0, BATCH)
    for _, id in ipairs(ids) do
      local t = load(id)
      if t then move(t) end
      call('ZREM', set, id)
    end
  until #ids < BATCH
end

local has_ticked = false

-- Do what has come due, once in a batch.
local function tick()
  if has_ticked then return end
  has_ticked = true
  each_up_to_now(EXPIRING, function(t) finish(t, '3', 'expired', 'e', EXPIRED, 'v', '') end)
  each_up_to_now(DUE, push_ready)
  each_up_to_now(LEASES, push_ready)
end
