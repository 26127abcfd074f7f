-- What the warehouse holds: one row per table and view, with its row count and a digest of its rows, in the same
-- columns as `schemas/source/lessons_digest.sql` computes them from the source. One statement; DateStyle must be the
-- same on both sides.
SELECT
    'dwh.d_course' AS relation,
    count(*) AS row_count,
    md5(string_agg(md5(row(
        course_id, title, created_at, updated_at, deleted_at, icon_url, is_auto_course_enroll, is_demo_enroll
    )::text), '' ORDER BY course_id)) AS digest
FROM dwh.d_course
UNION ALL
SELECT
    'dwh.d_stream',
    count(*),
    md5(string_agg(md5(row(
        stream_id, course_id, start_at, end_at, created_at, updated_at, deleted_at, is_open, name,
        homework_deadline_days
    )::text), '' ORDER BY stream_id))
FROM dwh.d_stream
UNION ALL
SELECT
    'dwh.d_stream_module',
    count(*),
    md5(string_agg(md5(row(
        stream_module_id, stream_id, title, created_at, updated_at, order_in_stream, deleted_at
    )::text), '' ORDER BY stream_module_id))
FROM dwh.d_stream_module
UNION ALL
SELECT
    'dwh.f_lesson',
    count(*),
    md5(string_agg(md5(row(
        id, stream_module_id, course_id, stream_id, title, description, start_at, end_at, homework_url, teacher_id,
        deleted_at, online_lesson_join_url, online_lesson_recording_url
    )::text), '' ORDER BY id))
FROM dwh.f_lesson
UNION ALL
SELECT
    'dwh.lesson_stream_dm',
    count(*),
    md5(string_agg(md5(row(
        id, lesson_title, teacher_id, stream_module_id, stream_module_title, stream_id, stream_name,
        homework_deadline_days, course_id, course_title, is_demo_enroll
    )::text), '' ORDER BY id))
FROM dwh.lesson_stream_dm
UNION ALL
SELECT
    'ods.stream_module_lesson',
    count(*),
    md5(string_agg(md5(row(
        id, title, description, start_at, end_at, homework_url, teacher_id, stream_module_id, deleted_at,
        online_lesson_join_url, online_lesson_recording_url
    )::text), '' ORDER BY id))
FROM ods.stream_module_lesson
ORDER BY relation
