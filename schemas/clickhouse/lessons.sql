-- The lessons model in ClickHouse: the two views of schemas/postgres/lessons.sql over the tables that `tailwater setup
-- --create-targets` makes from mappings/lessons_clickhouse.toml. Ordinary views over the tables' helper views `…_current`:
-- they are computed when they are asked, and need no refresh. The file may be run again.

CREATE OR REPLACE VIEW dwh.f_lesson AS
SELECT
    l.id AS id,
    l.stream_module_id AS stream_module_id,
    s.course_id AS course_id,
    m.stream_id AS stream_id,
    l.title AS title,
    l.description AS description,
    l.start_at AS start_at,
    l.end_at AS end_at,
    l.homework_url AS homework_url,
    l.teacher_id AS teacher_id,
    l.deleted_at AS deleted_at,
    l.online_lesson_join_url AS online_lesson_join_url,
    l.online_lesson_recording_url AS online_lesson_recording_url
FROM ods.stream_module_lesson_current AS l
INNER JOIN dwh.d_stream_module_current AS m ON m.stream_module_id = l.stream_module_id
INNER JOIN dwh.d_stream_current AS s ON s.stream_id = m.stream_id;

CREATE OR REPLACE VIEW dwh.lesson_stream_dm AS
SELECT
    f.id AS id,
    f.title AS lesson_title,
    f.teacher_id AS teacher_id,
    f.stream_module_id AS stream_module_id,
    m.title AS stream_module_title,
    f.stream_id AS stream_id,
    s.name AS stream_name,
    s.homework_deadline_days AS homework_deadline_days,
    f.course_id AS course_id,
    c.title AS course_title,
    c.is_demo_enroll AS is_demo_enroll
FROM dwh.f_lesson AS f
INNER JOIN dwh.d_stream_module_current AS m ON m.stream_module_id = f.stream_module_id
INNER JOIN dwh.d_stream_current AS s ON s.stream_id = f.stream_id
INNER JOIN dwh.d_course_current AS c ON c.course_id = f.course_id;
