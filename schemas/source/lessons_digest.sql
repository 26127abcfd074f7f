-- What the warehouse should hold, computed from the source: one row per table and view, with its row count and a digest
-- of its rows. `schemas/postgres/lessons_digest.sql` gives the same columns from the warehouse; the two results are
-- equal when the warehouse stands at the point where this query ran. One statement; DateStyle must be the same on both
-- sides.
WITH f_lesson AS (
    SELECT
        l.id, l.stream_module_id, s.course_id, m.stream_id, l.title, l.description, l.start_at, l.end_at,
        l.homework_url, l.teacher_id, l.deleted_at, l.online_lesson_join_url, l.online_lesson_recording_url
    FROM public.stream_module_lesson AS l
    JOIN public.stream_module AS m ON m.id = l.stream_module_id
    JOIN public.stream AS s ON s.id = m.stream_id
),

lesson_stream_dm AS (
    SELECT
        f.id, f.title AS lesson_title, f.teacher_id, f.stream_module_id, m.title AS stream_module_title, f.stream_id,
        s.name AS stream_name, s.homework_deadline_days, f.course_id, c.title AS course_title, c.is_demo_enroll
    FROM f_lesson AS f
    JOIN public.stream_module AS m ON m.id = f.stream_module_id
    JOIN public.stream AS s ON s.id = f.stream_id
    JOIN public.course AS c ON c.id = f.course_id
)

SELECT
    'dwh.d_course' AS relation,
    count(*) AS row_count,
    md5(string_agg(md5(row(
        id, title, created_at, updated_at, deleted_at, icon_url, is_auto_course_enroll, is_demo_enroll
    )::text), '' ORDER BY id)) AS digest
FROM public.course
UNION ALL
SELECT
    'dwh.d_stream',
    count(*),
    md5(string_agg(md5(row(
        id, course_id, start_at, end_at, created_at, updated_at, deleted_at, is_open, name, homework_deadline_days
    )::text), '' ORDER BY id))
FROM public.stream
UNION ALL
SELECT
    'dwh.d_stream_module',
    count(*),
    md5(string_agg(md5(row(
        id, stream_id, title, created_at, updated_at, order_in_stream, deleted_at
    )::text), '' ORDER BY id))
FROM public.stream_module
UNION ALL
SELECT
    'dwh.f_lesson',
    count(*),
    md5(string_agg(md5(row(
        id, stream_module_id, course_id, stream_id, title, description, start_at, end_at, homework_url, teacher_id,
        deleted_at, online_lesson_join_url, online_lesson_recording_url
    )::text), '' ORDER BY id))
FROM f_lesson
UNION ALL
SELECT
    'dwh.lesson_stream_dm',
    count(*),
    md5(string_agg(md5(row(
        id, lesson_title, teacher_id, stream_module_id, stream_module_title, stream_id, stream_name,
        homework_deadline_days, course_id, course_title, is_demo_enroll
    )::text), '' ORDER BY id))
FROM lesson_stream_dm
UNION ALL
SELECT
    'ods.stream_module_lesson',
    count(*),
    md5(string_agg(md5(row(
        id, title, description, start_at, end_at, homework_url, teacher_id, stream_module_id, deleted_at,
        online_lesson_join_url, online_lesson_recording_url
    )::text), '' ORDER BY id))
FROM public.stream_module_lesson
ORDER BY relation
