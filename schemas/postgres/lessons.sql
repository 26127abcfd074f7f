-- The lessons model, warehouse side: the mirrored lessons in `ods`, the star in `dwh`. `mappings/lessons.toml` fills
-- the four tables; the two materialized views are refreshed after them. The file may be run again: it creates what is
-- missing.

CREATE SCHEMA IF NOT EXISTS ods;
CREATE SCHEMA IF NOT EXISTS dwh;

CREATE TABLE IF NOT EXISTS dwh.d_course (
    course_id             int PRIMARY KEY,
    title                 varchar(255),
    created_at            timestamp,
    updated_at            timestamp,
    deleted_at            timestamp(0),
    icon_url              varchar(255),
    is_auto_course_enroll bool,
    is_demo_enroll        bool
);

-- The dimensions keep their parent's key: f_lesson finds stream and course through the module.
CREATE TABLE IF NOT EXISTS dwh.d_stream (
    stream_id              int PRIMARY KEY,
    course_id              int REFERENCES dwh.d_course (course_id),
    start_at               timestamp,
    end_at                 timestamp,
    created_at             timestamp,
    updated_at             timestamp,
    deleted_at             timestamp,
    is_open                bool,
    name                   varchar(255),
    homework_deadline_days int
);

CREATE TABLE IF NOT EXISTS dwh.d_stream_module (
    stream_module_id int PRIMARY KEY,
    stream_id        int REFERENCES dwh.d_stream (stream_id),
    title            varchar(255),
    created_at       timestamp,
    updated_at       timestamp,
    order_in_stream  int,
    deleted_at       timestamp
);

-- A parent's delete looks for its children.
CREATE INDEX IF NOT EXISTS d_stream_course_id_idx ON dwh.d_stream (course_id);
CREATE INDEX IF NOT EXISTS d_stream_module_stream_id_idx ON dwh.d_stream_module (stream_id);

-- The mirror has no foreign key: it is raw material, and its columns are the source's.
CREATE TABLE IF NOT EXISTS ods.stream_module_lesson (
    id                          int PRIMARY KEY,
    title                       varchar(255),
    description                 text,
    start_at                    timestamp,
    end_at                      timestamp,
    homework_url                varchar(500),
    teacher_id                  int,
    stream_module_id            int,
    deleted_at                  timestamp(0),
    online_lesson_join_url      varchar(255),
    online_lesson_recording_url varchar(255)
);

CREATE MATERIALIZED VIEW IF NOT EXISTS dwh.f_lesson AS
SELECT
    l.id,
    l.stream_module_id,
    s.course_id,
    m.stream_id,
    l.title,
    l.description,
    l.start_at,
    l.end_at,
    l.homework_url,
    l.teacher_id,
    l.deleted_at,
    l.online_lesson_join_url,
    l.online_lesson_recording_url
FROM ods.stream_module_lesson AS l
JOIN dwh.d_stream_module AS m ON m.stream_module_id = l.stream_module_id
JOIN dwh.d_stream AS s ON s.stream_id = m.stream_id;

-- REFRESH … CONCURRENTLY finds changed rows by a unique index over plain columns, without a predicate.
CREATE UNIQUE INDEX IF NOT EXISTS f_lesson_id_key ON dwh.f_lesson (id);

CREATE MATERIALIZED VIEW IF NOT EXISTS dwh.lesson_stream_dm AS
SELECT
    f.id,
    f.title AS lesson_title,
    f.teacher_id,
    f.stream_module_id,
    m.title AS stream_module_title,
    f.stream_id,
    s.name AS stream_name,
    s.homework_deadline_days,
    f.course_id,
    c.title AS course_title,
    c.is_demo_enroll
FROM dwh.f_lesson AS f
JOIN dwh.d_stream_module AS m ON m.stream_module_id = f.stream_module_id
JOIN dwh.d_stream AS s ON s.stream_id = f.stream_id
JOIN dwh.d_course AS c ON c.course_id = f.course_id;

CREATE UNIQUE INDEX IF NOT EXISTS lesson_stream_dm_id_key ON dwh.lesson_stream_dm (id);
