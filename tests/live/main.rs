//! Tests against real servers, which they start themselves.

#[path = "../support/mod.rs"]
mod support;

mod clickhouse;
mod clickhouse_boundaries;
mod clickhouse_drift;
mod clickhouse_features;
mod clickhouse_findings;
mod clickhouse_model;
mod clickhouse_sink;
mod clickhouse_text;
mod clickhouse_tls;
mod clickhouse_views;
mod crash;
mod debezium_types;
mod demo;
mod drift;
mod findings;
mod harness;
mod huge;
mod identity;
mod journal_modes;
mod kafka;
mod kafka_avro;
mod kafka_drift;
mod kafka_events;
mod kafka_secured;
mod kafka_sink;
mod kafka_topics;
mod kafka_where;
mod keyless;
mod patience;
mod refresh;
mod replay;
mod resume;
mod security;
mod sessions;
mod setup;
mod several_sinks;
mod sink_postgres;
mod snapshot;
mod spine;
mod startup;
mod surface;
mod trouble;
mod view_catalog;
