//! A private Apache Kafka in a scratch directory, on free ports of 127.0.0.1: one node that is broker and controller,
//! from the jars that `tests/install.sh` puts below the target directory. Read back by `kcat`, which shares no code with
//! the daemon's build of librdkafka.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use super::certificates::Certificates;
use super::cluster::free_port;
use super::process;
use super::scratch::{self, Scratch};
use super::server::{Server, installed};
use super::wait::Look;

/// A cold JVM on a busy machine takes its time.
const START_WITHIN: Duration = Duration::from_secs(90);

/// The user that a secured listener knows, by PLAIN and by SCRAM-SHA-512.
pub const USER: &str = "tailwater";
pub const PASSWORD: &str = "s3cret-of-kafka";

/// As `kafka.jars` has it; names the template of a data directory.
const VERSION: &str = "4.2.1";

/// The last thing a server says of its start.
const STARTED: &str = "Kafka Server started";

/// What every broker starts with: no topic that nobody made, no copies, no waiting, few threads.
const PROPERTIES: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("controller.listener.names", "CONTROLLER"),
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("listener.security.protocol.map", "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURED:SASL_SSL,PROXIED:PLAINTEXT"),
    ("auto.create.topics.enable", "false"),
    ("num.partitions", "3"),
    ("offsets.topic.replication.factor", "1"),
    ("offsets.topic.num.partitions", "1"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.num.partitions", "1"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "200"),
    // A killed broker is let in again when its last session is over.
    ("broker.session.timeout.ms", "3000"),
    ("broker.heartbeat.interval.ms", "500"),
    ("num.network.threads", "2"),
    ("num.io.threads", "2"),
    ("num.replica.fetchers", "1"),
    ("background.threads", "2"),
    ("log.cleaner.dedupe.buffer.size", "4194304"),
];

/// How its JVM runs: small, and quick to start rather than quick in the end. The demo's runs by the same flags.
const JVM: &str = include_str!("kafka.jvm");

/// What a broker has beyond the usual.
#[derive(Clone, Default)]
pub struct Options {
    properties: Vec<(String, String)>,
    jvm: Option<&'static str>,
    certificates: Option<Certificates>,
    proxy_port: Option<u16>,
}

impl Options {
    pub fn set(mut self, name: &str, value: &str) -> Options {
        self.properties.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another JVM than the small one that is quick to start: its flags, separated by white space.
    pub fn jvm(mut self, flags: &'static str) -> Options {
        self.jvm = Some(flags);
        self
    }

    /// A second listener, TLS with this certificate and SASL for [`USER`]; who comes over the first one may do everything,
    /// the user only what [`Kafka::allow`] gives.
    pub fn secured(mut self, certificates: &Certificates) -> Options {
        self.certificates = Some(certificates.clone());
        self
    }

    /// A listener at [`Kafka::proxied_port`] whose clients are told to go by way of this port.
    pub fn proxied(mut self, proxy_port: u16) -> Options {
        self.proxy_port = Some(proxy_port);
        self
    }
}

pub struct Kafka {
    server: Server,
    scratch: Scratch,
    options: Options,
    port: u16,
    controller_port: u16,
    secured_port: u16,
    proxied_port: u16,
}

impl Kafka {
    /// A broker that asks nobody who he is.
    pub fn start(name: &str) -> Result<Kafka> {
        Kafka::start_with(name, Options::default())
    }

    pub fn start_with(name: &str, options: Options) -> Result<Kafka> {
        let scratch = Scratch::new(name)?;
        let [port, controller_port, secured_port, proxied_port] = [0; 4];
        let server = Server::new("Kafka", scratch.path());
        let mut broker = Kafka { server, scratch, options, port, controller_port, secured_port, proxied_port };
        // Another process may take a port between our look and the server's.
        for attempt in 0..5 {
            (broker.port, broker.controller_port) = (free_port()?, free_port()?);
            (broker.secured_port, broker.proxied_port) = (free_port()?, free_port()?);
            broker.write_properties()?;
            if attempt == 0 {
                broker.format()?;
            }
            match broker.resume() {
                Ok(()) => return Ok(broker),
                Err(_) if broker.log().contains("Address already in use") => {}
                Err(err) => return Err(err),
            }
        }
        bail!("no free ports were found for Kafka \"{name}\"");
    }

    fn write_properties(&self) -> Result<()> {
        let (port, controller_port, secured_port) = (self.port, self.controller_port, self.secured_port);
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{port}");
        if self.options.certificates.is_some() {
            write!(listeners, ",SECURED://127.0.0.1:{secured_port}")?;
        }
        let mut advertised = listeners.clone();
        if let Some(proxy_port) = self.options.proxy_port {
            write!(listeners, ",PROXIED://127.0.0.1:{}", self.proxied_port)?;
            write!(advertised, ",PROXIED://127.0.0.1:{proxy_port}")?;
        }
        let mut text = format!(
            "listeners={listeners},CONTROLLER://127.0.0.1:{controller_port}\nadvertised.listeners={advertised}\n\
             controller.quorum.voters=1@127.0.0.1:{controller_port}\nlog.dirs={}\n",
            self.directory().display()
        );
        for (name, value) in PROPERTIES {
            writeln!(text, "{name}={value}")?;
        }
        if let Some(certificates) = &self.options.certificates {
            text += &self.secured_properties(certificates)?;
        }
        for (name, value) in &self.options.properties {
            writeln!(text, "{name}={value}")?;
        }
        Ok(fs::write(self.properties(), text)?)
    }

    fn secured_properties(&self, certificates: &Certificates) -> Result<String> {
        let store = self.scratch.path().join("server.pem");
        let key = fs::read_to_string(&certificates.server_key)?;
        fs::write(&store, key + &fs::read_to_string(&certificates.server)?)?;
        let security = "org.apache.kafka.common.security";
        Ok(format!(
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n\
             listener.name.secured.ssl.keystore.type=PEM\n\
             listener.name.secured.ssl.keystore.location={}\n\
             listener.name.secured.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
             listener.name.secured.plain.sasl.jaas.config={security}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n\
             listener.name.secured.scram-sha-512.sasl.jaas.config={security}.scram.ScramLoginModule required;\n",
            store.display()
        ))
    }

    /// Makes the data directory what a node of a new cluster begins with: a copy of one that was made once, as that takes
    /// a JVM of its own. With a user to know it is made anew.
    fn format(&self) -> Result<()> {
        let data = self.scratch.path().join("data");
        let template = scratch::kept()?.join(format!("kafka-{VERSION}"));
        if self.options.certificates.is_some() {
            return self.format_anew();
        }
        if !template.exists() {
            self.format_anew()?;
            let partial = template.with_extension(std::process::id().to_string());
            copy_files(&data, &partial)?;
            // Another run may have been faster; what it made is as good.
            return fs::rename(&partial, &template).or_else(|_| Ok(fs::remove_dir_all(&partial)?));
        }
        copy_files(&template, &data)
    }

    fn format_anew(&self) -> Result<()> {
        let mut command = java()?;
        command.arg("kafka.tools.StorageTool").args(["format", "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAQ", "--config"]);
        command.arg(self.properties());
        if self.options.certificates.is_some() {
            command.args(["--add-scram", &format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]")]);
        }
        process::run(command.current_dir(self.scratch.path())).map(drop)
    }

    /// Starts a stopped or killed broker on its ports and data; returns when it serves.
    pub fn resume(&mut self) -> Result<()> {
        let said_before = self.log().len();
        let log = self.scratch.path().join("log");
        let mut command = java_with(self.options.jvm.unwrap_or(JVM))?;
        command.arg("kafka.Kafka").arg(self.properties()).current_dir(self.scratch.path());
        self.server.start(&mut command, "", START_WITHIN, || {
            let said = fs::read(&log)?;
            let started = String::from_utf8_lossy(said.get(said_before..).unwrap_or_default()).contains(STARTED);
            Ok(if started { Look::Yes(()) } else { Look::NotYet("it is still starting".to_owned()) })
        })
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<()> {
        self.server.stop()
    }

    /// SIGKILL, with whatever it was doing.
    pub fn kill9(&mut self) {
        self.server.kill9();
    }

    pub fn kill9_and_resume(&mut self) -> Result<()> {
        self.kill9();
        self.resume()
    }

    /// Freezes (`STOP`) or thaws (`CONT`) the broker.
    pub fn signal(&self, name: &str) {
        self.server.signal(name);
    }

    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Where its topics are.
    pub fn directory(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// Where a client that needs no password begins: `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where one with a password begins. The certificate is for this name.
    pub fn secured_bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.secured_port)
    }

    /// Where a proxy of [`Options::proxied`] carries to.
    pub fn proxied_port(&self) -> u16 {
        self.proxied_port
    }

    /// Makes a topic, with settings such as `("cleanup.policy", "compact")`.
    pub async fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", self.bootstrap()).create()?;
        let new =
            settings.iter().fold(NewTopic::new(topic, partitions, TopicReplication::Fixed(1)), |new, (name, value)| {
                new.set(name, value)
            });
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
        for outcome in admin.create_topics([&new], &options).await? {
            outcome.map_err(|(name, code)| anyhow::anyhow!("topic {name} was not made: {code}"))?;
        }
        Ok(())
    }

    /// Gives [`USER`] a right, in the words of `kafka-acls`: `["--operation", "Write", "--topic", "a"]`.
    pub fn allow(&self, words: &[&str]) -> Result<()> {
        let mut args = vec!["--bootstrap-server", "", "--add", "--allow-principal", "", "--force"];
        let (bootstrap, principal) = (self.bootstrap(), format!("User:{USER}"));
        (args[1], args[4]) = (&bootstrap, &principal);
        args.extend(words);
        self.tool("org.apache.kafka.tools.AclCommand", &args).map(drop)
    }

    /// Sends records by Kafka's own producer, keys and values of text; it picks the partitions.
    pub fn produce(&self, topic: &str, records: &[(String, String)]) -> Result<()> {
        let lines = self.scratch.path().join("lines");
        fs::write(&lines, records.iter().map(|(key, value)| format!("{key}\t{value}\n")).collect::<String>())?;
        let mut command = java()?;
        command.arg("org.apache.kafka.tools.ConsoleProducer").args(["--bootstrap-server", &self.bootstrap()]);
        command.args(["--topic", topic, "--reader-property", "parse.key=true"]);
        process::run(command.stdin(File::open(&lines)?).current_dir(self.scratch.path())).map(drop)
    }

    /// Runs one of Kafka's own tools to its end.
    pub fn tool(&self, class: &str, args: &[&str]) -> Result<String> {
        process::run(java()?.arg(class).args(args).current_dir(self.scratch.path()))
    }

    /// Everything the broker has said.
    pub fn log(&self) -> String {
        self.server.log()
    }

    fn properties(&self) -> PathBuf {
        self.scratch.path().join("server.properties")
    }
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

/// A JVM with Kafka's jars, still without a class to run.
fn java() -> Result<Command> {
    java_with(JVM)
}

fn java_with(flags: &str) -> Result<Command> {
    let mut command = Command::new("java");
    command.args(flags.split_whitespace()).arg("-cp").arg(installed("kafka/installed")?.with_file_name("*"));
    Ok(command)
}
