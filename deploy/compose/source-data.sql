-- Loaded once, when the source's volume is empty.
SELECT lessons_generate(60);
ANALYZE;
