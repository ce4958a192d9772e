-- What the server says of itself.
-- KEYS: none.
-- Returns the text of INFO.
return redis.call('INFO')
