-- Returns no rows when f_lesson and lesson_stream_dm equal their joins over the mirrored lessons and the dimensions,
-- and no mirrored lesson lacks its module (the dimensions have foreign keys). A view that is waiting for its refresh
-- shows up here: ask when `tailwater.view_state` has reached the checkpoint. One statement.
WITH f_lesson AS (
    SELECT
        l.id, l.stream_module_id, s.course_id, m.stream_id, l.title, l.description, l.start_at, l.end_at,
        l.homework_url, l.teacher_id, l.deleted_at, l.online_lesson_join_url, l.online_lesson_recording_url
    FROM ods.stream_module_lesson AS l
    JOIN dwh.d_stream_module AS m ON m.stream_module_id = l.stream_module_id
    JOIN dwh.d_stream AS s ON s.stream_id = m.stream_id
),

f_lesson_held AS (
    SELECT
        id, stream_module_id, course_id, stream_id, title, description, start_at, end_at,
        homework_url, teacher_id, deleted_at, online_lesson_join_url, online_lesson_recording_url
    FROM dwh.f_lesson
),

lesson_stream_dm AS (
    SELECT
        f.id, f.title, f.teacher_id, f.stream_module_id, m.title AS stream_module_title, f.stream_id,
        s.name, s.homework_deadline_days, f.course_id, c.title AS course_title, c.is_demo_enroll
    FROM f_lesson AS f
    JOIN dwh.d_stream_module AS m ON m.stream_module_id = f.stream_module_id
    JOIN dwh.d_stream AS s ON s.stream_id = f.stream_id
    JOIN dwh.d_course AS c ON c.course_id = f.course_id
),

lesson_stream_dm_held AS (
    SELECT
        id, lesson_title, teacher_id, stream_module_id, stream_module_title, stream_id,
        stream_name, homework_deadline_days, course_id, course_title, is_demo_enroll
    FROM dwh.lesson_stream_dm
)

SELECT 'dwh.f_lesson' AS relation, 'missing or different' AS problem, id
FROM (TABLE f_lesson EXCEPT ALL TABLE f_lesson_held) AS diff
UNION ALL
SELECT 'dwh.f_lesson', 'too many or different', id
FROM (TABLE f_lesson_held EXCEPT ALL TABLE f_lesson) AS diff
UNION ALL
SELECT 'dwh.lesson_stream_dm', 'missing or different', id
FROM (TABLE lesson_stream_dm EXCEPT ALL TABLE lesson_stream_dm_held) AS diff
UNION ALL
SELECT 'dwh.lesson_stream_dm', 'too many or different', id
FROM (TABLE lesson_stream_dm_held EXCEPT ALL TABLE lesson_stream_dm) AS diff
UNION ALL
SELECT 'ods.stream_module_lesson', 'module not in dwh.d_stream_module', l.id
FROM ods.stream_module_lesson AS l
WHERE l.stream_module_id IS NOT NULL
    AND NOT EXISTS (SELECT FROM dwh.d_stream_module AS m WHERE m.stream_module_id = l.stream_module_id)
ORDER BY relation, problem, id
