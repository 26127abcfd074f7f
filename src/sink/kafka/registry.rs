//! A schema registry with Confluent's API: schemas go in under a subject, and come back as a number that every message has
//! before its bytes.
//!
//! Subjects are named after topics (`<topic>-key` and `<topic>-value`, Confluent's `TopicNameStrategy`). It is asked when a
//! sink or a copy begins and never for a row.

pub mod address;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};

use crate::mapping::plan::{Plan, TopicFormat};
use crate::postgres::tls;
use crate::postgres::url::{CONNECT_TIMEOUT, SslMode};
use crate::sink::http::{Answer, Connections, HttpError, push_encoded, secret};
use address::RegistryAddress;

use super::encode::avro_shape;

/// What each side of the API takes and gives.
const CONTENT: &str = "application/vnd.schemaregistry.v1+json";
/// A registry writes into a log of its own before it answers; Confluent's own clients wait as long.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The registry's own words are cut here.
const WORDS_MAX: usize = 300;

/// Before every key and value: that a schema's number follows.
const MAGIC: u8 = 0;
pub const PREFIX_BYTES: usize = 5;

/// A schema's number in the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SchemaId(u32);

impl SchemaId {
    /// What stands before the bytes of whatever is written under the schema.
    pub fn prefix(self) -> [u8; PREFIX_BYTES] {
        let [a, b, c, d] = self.0.to_be_bytes();
        [MAGIC, a, b, c, d]
    }
}

/// The numbers of a table's schemas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SchemaIds {
    pub key: SchemaId,
    pub value: SchemaId,
}

/// Why a schema is not registered. Everything in it may be shown.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegistryError {
    /// Passes with time.
    #[error("the schema registry at {place} does not answer: {why}")]
    Passing { place: String, why: String },
    /// It does not know us, or does not let us.
    #[error("the schema registry at {place} does not let us in ({status}): check user, password and rights")]
    Denied { place: String, status: u16 },
    /// The schema is not compatible with those that the subject has.
    #[error(
        "the schema registry refuses the schema of subject \"{subject}\" as incompatible with those before it{words}; relax \
         the subject's compatibility, or give the table another topic"
    )]
    Incompatible { subject: String, words: String },
    /// The registry does not take such a schema at all.
    #[error("the schema registry calls the schema of subject \"{subject}\" invalid{words}")]
    Invalid { subject: String, words: String },
    /// Not a registry, or not as configured.
    #[error("the schema registry at {place} cannot be used: {why}")]
    Unusable { place: String, why: String },
    /// There is no schema of such a table.
    #[error("{0}")]
    Plan(String),
}

impl RegistryError {
    /// The same may be tried again.
    pub fn passes(&self) -> bool {
        matches!(self, RegistryError::Passing { .. })
    }
}

/// One registry.
pub struct Registry {
    connections: Connections,
    place: String,
    path: String,
    authorization: Option<HeaderValue>,
}

impl Registry {
    /// Reads certificates; connects to nothing yet.
    pub fn new(address: &RegistryAddress) -> Result<Registry, RegistryError> {
        let place = format!("{}:{}", address.host, address.port);
        let unusable = |why: String| RegistryError::Unusable { place: place.clone(), why };
        let mode = if address.tls { SslMode::VerifyFull } else { SslMode::Disable };
        let tls = tls::config(mode, address.ca_file.as_deref(), None).map_err(|error| unusable(error.to_string()))?;
        let authorization = address.user.as_ref().map(|user| {
            let password = address.password.as_ref().map_or("", |password| password.expose());
            secret("user or password", format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))).as_bytes())
        });
        let authorization = authorization.transpose().map_err(|error| unusable(error.to_string()))?;
        let connections = Connections::new("the schema registry", &address.host, address.port, tls, CONNECT_TIMEOUT);
        Ok(Registry { connections, place, path: address.path.clone(), authorization })
    }

    /// Does a registry of Avro's schemas answer there, and does it let us in?
    pub async fn probe(&self) -> Result<(), RegistryError> {
        let answer = self.exchange(Method::GET, "/schemas/types", None).await?;
        self.accepted(&answer, "")?;
        let types: Vec<String> = serde_json::from_slice(&answer.body).unwrap_or_default();
        match types.iter().any(|known| known == "AVRO") {
            true => Ok(()),
            false => Err(self.unusable("it does not list AVRO among its types of schemas")),
        }
    }

    /// Registers a schema unless it is there; its number either way.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        let mut target = String::from("/subjects/");
        push_encoded(&mut target, subject);
        target.push_str("/versions");
        let body = serde_json::json!({ "schema": schema }).to_string();
        let answer = self.exchange(Method::POST, &target, Some(body)).await?;
        self.accepted(&answer, subject)?;
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let id = json.get("id").and_then(serde_json::Value::as_u64).and_then(|id| u32::try_from(id).ok());
        id.map(SchemaId).ok_or_else(|| self.unusable("its answer holds no number of a schema"))
    }

    async fn exchange(&self, method: Method, target: &str, body: Option<String>) -> Result<Answer, RegistryError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.path))
            .header(HOST, self.connections.host_header())
            .header(ACCEPT, format!("{CONTENT}, application/json"));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(body) = &body {
            request = request.header(CONTENT_TYPE, CONTENT).header(CONTENT_LENGTH, body.len());
        }
        let request = request.body(Full::new(body.map(Bytes::from).unwrap_or_default()));
        let request = request.map_err(|_| self.unusable("its address makes no valid request"))?;
        self.connections.exchange(request, ANSWER_WITHIN).await.map_err(|error| {
            let (place, why) = (self.place.clone(), error.to_string());
            match error {
                HttpError::Connection(_) | HttpError::Tls(_) | HttpError::Timeout(_) => {
                    RegistryError::Passing { place, why }
                }
                HttpError::Settings(_) => RegistryError::Unusable { place, why },
            }
        })
    }

    /// Errs if the answer says no. (Confluent's API reference, "Errors".)
    fn accepted(&self, answer: &Answer, subject: &str) -> Result<(), RegistryError> {
        let status = answer.parts.status;
        let (place, subject) = (self.place.clone(), subject.to_owned());
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Denied { place, status: status.as_u16() }
            }
            StatusCode::CONFLICT => RegistryError::Incompatible { subject, words: words(&answer.body) },
            StatusCode::UNPROCESSABLE_ENTITY => RegistryError::Invalid { subject, words: words(&answer.body) },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                RegistryError::Passing { place, why: format!("it answered {status}") }
            }
            status if status.is_success() => return Ok(()),
            status if status.is_server_error() => {
                RegistryError::Passing { place, why: format!("it answered {status}") }
            }
            status => self.unusable(&format!("it answered {status}; is the path of its url right?")),
        })
    }

    fn unusable(&self, why: &str) -> RegistryError {
        RegistryError::Unusable { place: self.place.clone(), why: why.to_owned() }
    }
}

/// Registers the schemas of a plan's messages; `None` where their format has none.
pub async fn register_plan(
    registry: Option<&Registry>,
    plan: &Plan,
    database: &str,
) -> Result<Option<SchemaIds>, RegistryError> {
    let Some(topic) = plan.topic.as_ref().filter(|topic| topic.format == TopicFormat::Avro) else { return Ok(None) };
    let of_table = |error: &dyn Display| RegistryError::Plan(format!("table \"{}\": {error}", plan.from));
    let shape = avro_shape(plan, topic, database).map_err(|error| of_table(&error))?;
    let registry = registry.ok_or_else(|| of_table(&"Avro needs the sink's schema_registry"))?;
    let key = shape.key_schema().ok_or_else(|| of_table(&"it has no key"))?;
    Ok(Some(SchemaIds {
        key: registry.register(&format!("{}-key", topic.name), key).await?,
        value: registry.register(&format!("{}-value", topic.name), shape.value_schema()).await?,
    }))
}

/// What the registry says, which is about schemas alone: one line, in parentheses.
fn words(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(message) = json.get("message").and_then(serde_json::Value::as_str) else { return String::new() };
    let line = message.lines().next().unwrap_or_default();
    let cut: String = line.chars().filter(|letter| !letter.is_control()).take(WORDS_MAX).collect();
    format!(" ({cut})")
}
