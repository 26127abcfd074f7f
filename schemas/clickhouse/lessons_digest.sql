-- What ClickHouse holds: one row per table and view, with its row count and a digest of its rows, equal to those that
-- schemas/source/lessons_digest.sql and schemas/postgres/lessons_digest.sql give when all stand at the same point. Rows are
-- written here as Postgres writes a composite value. One statement.
WITH
    (at -> replaceRegexpOne(toString(at), '\\.?0+$', '')) AS moment,
    (truth -> substring(toString(truth), 1, 1)) AS yes_or_no,
    (text -> multiIf(
        text IS NULL, '',
        text = '' OR match(assumeNotNull(text), '[\\s",()\\\\]'),
        concat('"', replaceAll(replaceAll(assumeNotNull(text), '\\', '\\\\'), '"', '""'), '"'),
        assumeNotNull(text)
    )) AS field
SELECT
    relation,
    count() AS row_count,
    lower(hex(MD5(arrayStringConcat(arrayMap(one -> one.2, arraySort(groupArray((
        id,
        lower(hex(MD5(concat('(', arrayStringConcat(arrayMap(text -> field(text), fields), ','), ')'))))
    )))))))) AS digest
FROM (
    SELECT
        'dwh.d_course' AS relation,
        course_id AS id,
        [
            toString(course_id), title, moment(created_at), moment(updated_at), moment(deleted_at), icon_url,
            yes_or_no(is_auto_course_enroll), yes_or_no(is_demo_enroll)
        ] AS fields
    FROM dwh.d_course_current
    UNION ALL
    SELECT
        'dwh.d_stream',
        stream_id,
        [
            toString(stream_id), toString(course_id), moment(start_at), moment(end_at), moment(created_at),
            moment(updated_at), moment(deleted_at), yes_or_no(is_open), name, toString(homework_deadline_days)
        ]
    FROM dwh.d_stream_current
    UNION ALL
    SELECT
        'dwh.d_stream_module',
        stream_module_id,
        [
            toString(stream_module_id), toString(stream_id), title, moment(created_at), moment(updated_at),
            toString(order_in_stream), moment(deleted_at)
        ]
    FROM dwh.d_stream_module_current
    UNION ALL
    SELECT
        'dwh.f_lesson',
        id,
        [
            toString(id), toString(stream_module_id), toString(course_id), toString(stream_id), title, description,
            moment(start_at), moment(end_at), homework_url, toString(teacher_id), moment(deleted_at),
            online_lesson_join_url, online_lesson_recording_url
        ]
    FROM dwh.f_lesson
    UNION ALL
    SELECT
        'dwh.lesson_stream_dm',
        id,
        [
            toString(id), lesson_title, toString(teacher_id), toString(stream_module_id), stream_module_title,
            toString(stream_id), stream_name, toString(homework_deadline_days), toString(course_id), course_title,
            yes_or_no(is_demo_enroll)
        ]
    FROM dwh.lesson_stream_dm
    UNION ALL
    SELECT
        'ods.stream_module_lesson',
        id,
        [
            toString(id), title, description, moment(start_at), moment(end_at), homework_url, toString(teacher_id),
            toString(stream_module_id), moment(deleted_at), online_lesson_join_url, online_lesson_recording_url
        ]
    FROM ods.stream_module_lesson_current
)
GROUP BY relation
ORDER BY relation
