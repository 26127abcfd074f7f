//! A private Apache Kafka in the scratch directory, where it is asked for: one node, broker and controller, that lets in
//! who knows the demo's password.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::config::ClientConfig;

use super::cluster::free_port;
use super::process::{LOOK, RunAs, end, ended_within, guarded, last_lines};
use super::scratch::Scratch;

/// The daemon's user in it, who may do everything: the broker is nobody else's.
const USER: &str = "tailwater";

const FORMAT_WITHIN: Duration = Duration::from_secs(60);
const START_WITHIN: Duration = Duration::from_secs(90);

/// The last thing a broker says of its start.
const STARTED: &str = "Kafka Server started";

/// One node, so no copies; topics are made by `tailwater setup` alone; threads for a small machine.
const PROPERTIES: &str = "process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
listener.security.protocol.map=CLIENTS:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.mechanism.controller.protocol=PLAIN
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=2
background.threads=2
log.cleaner.dedupe.buffer.size=4194304
";

/// A small JVM that is quick to start: the tests' own.
const JVM: &str = include_str!("../../../tests/support/kafka.jvm");

/// Where Java and Kafka's jars are.
#[derive(Clone)]
pub struct Installed {
    java: PathBuf,
    jars: PathBuf,
}

impl Installed {
    /// # Errors
    /// Java or Kafka is not there, and how to get it.
    pub fn find() -> Result<Installed> {
        let java = java(std::env::var_os("JAVA_HOME"), std::env::var_os("PATH"));
        let java = java.context(
            "Kafka needs Java 17 or later, and there is no \"java\" below JAVA_HOME or in PATH; on Debian: apt-get \
             install openjdk-17-jre-headless, or make demo KAFKA=1",
        )?;
        let program = std::env::current_exe().context("find this program's own file")?;
        let complete = |above: &&Path| above.join("kafka/installed").is_file();
        let above = program.ancestors().skip(1).find(complete);
        let above = above
            .context("Kafka is not installed below this program's build: KAFKA=1 tests/install.sh demo does it")?;
        Ok(Installed { java, jars: above.join("kafka") })
    }

    /// As the list of its jars says.
    fn version(&self) -> String {
        let list = fs::read_to_string(self.jars.join("installed")).unwrap_or_default();
        list.strip_prefix("# Apache Kafka ").and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned()
    }

    /// What starts one of Kafka's classes from a shell.
    pub fn tool(&self, class: &str) -> String {
        format!("{} -cp '{}' {class}", self.java.display(), self.jars.join("*").display())
    }

    fn run(&self, class: &str) -> Command {
        let mut command = guarded("TERM", RunAs::Ourselves, &self.java);
        command.args(JVM.lines()).arg("-cp").arg(self.jars.join("*")).arg(class);
        command
    }
}

fn java(home: Option<OsString>, path: Option<OsString>) -> Option<PathBuf> {
    let home = home.filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join("bin"));
    let path = path.unwrap_or_default();
    home.into_iter().chain(std::env::split_paths(&path)).map(|at| at.join("java")).find(|java| java.is_file())
}

pub struct Kafka {
    installed: Installed,
    home: PathBuf,
    pub port: u16,
    password: String,
    child: Option<Child>,
}

impl Kafka {
    /// Begins to make its data directory; `start` waits for that, so that other servers can be made meanwhile.
    pub fn new(scratch: &Scratch, installed: Installed, password: &str) -> Result<Kafka> {
        let home = scratch.make_directory("kafka")?;
        let (port, controller_port) = (free_port()?, free_port()?);
        let login = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"{USER}\" password=\"{password}\""
        );
        let broker = format!(
            "{PROPERTIES}listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}\n\
             advertised.listeners=CLIENTS://127.0.0.1:{port}\n\
             controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
             log.dirs={}\n\
             listener.name.clients.plain.sasl.jaas.config={login} user_{USER}=\"{password}\";\n\
             listener.name.controller.plain.sasl.jaas.config={login} user_{USER}=\"{password}\";\n",
            home.join("data").display()
        );
        let client = format!("security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config={login};\n");
        for (name, text) in [("broker.properties", broker), ("client.properties", client)] {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(home.join(name))?;
            file.write_all(text.as_bytes())?;
        }
        let mut kafka = Kafka { installed, home, port, password: password.to_owned(), child: None };
        let arguments = ["format", "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAQ", "--config"];
        let mut command = kafka.installed.run("kafka.tools.StorageTool");
        kafka.spawn(command.args(arguments).arg(kafka.properties("broker")))?;
        Ok(kafka)
    }

    fn spawn(&mut self, command: &mut Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let child = command.current_dir(&self.home).stdout(log.try_clone()?).stderr(log).spawn();
        self.child = Some(child.context("start Java through setpriv (of util-linux)")?);
        Ok(())
    }

    /// Starts the broker; `ready` waits until it serves.
    pub async fn start(&mut self) -> Result<()> {
        let format = self.child.as_mut().context("Kafka's storage tool was not started")?;
        match ended_within(format, FORMAT_WITHIN).await? {
            Some(status) if status.success() => self.child = None,
            Some(status) => bail!("Kafka's storage tool ended with {status}:{}", last_lines(&self.log(), 15)),
            None => bail!("Kafka's storage tool takes longer than {} s", FORMAT_WITHIN.as_secs()),
        }
        let mut command = self.installed.run("kafka.Kafka");
        self.spawn(command.arg(self.properties("broker")))
    }

    /// Waits until it serves; its version.
    pub async fn ready(&mut self) -> Result<String> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            if let Some(status) = self.child.as_mut().context("Kafka was not started")?.try_wait()? {
                bail!("Kafka ended with {status}:{}", last_lines(&self.log(), 15));
            }
            if fs::read_to_string(self.log()).is_ok_and(|said| said.contains(STARTED)) {
                return Ok(self.installed.version());
            }
            if Instant::now() > deadline {
                bail!("Kafka is not ready yet:{}", last_lines(&self.log(), 15));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// `host:port`, for any client.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The lines of `[sink.NAME]`, without the password.
    pub fn sink_lines(&self) -> String {
        format!(
            "kind    = \"kafka\"\nbrokers = \"{}\"\nuser    = \"{USER}\"\npassword_file = \"password\"\n\
             options = {{ \"security.protocol\" = \"SASL_PLAINTEXT\", \"sasl.mechanism\" = \"PLAIN\" }}\n",
            self.address()
        )
    }

    /// How a client of the demo itself is let in.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.address())
            .set("client.id", "tailwater-demo")
            .set("security.protocol", "SASL_PLAINTEXT")
            .set("sasl.mechanism", "PLAIN")
            .set("sasl.username", USER)
            .set("sasl.password", &self.password);
        config
    }

    /// What a person types to read a topic by Kafka's own consumer.
    pub fn read_by_hand(&self, topic: &str) -> String {
        let tool = self.installed.tool("org.apache.kafka.tools.consumer.ConsoleConsumer");
        format!(
            "{tool} --bootstrap-server {} --command-config {} --isolation-level read_committed --from-beginning --topic {topic}",
            self.address(),
            self.properties("client").display()
        )
    }

    fn properties(&self, whose: &str) -> PathBuf {
        self.home.join(format!("{whose}.properties"))
    }

    fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Its data goes with the demo, so it need not be asked twice.
    pub async fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child, &[("TERM", Duration::from_secs(5))]).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_is_looked_for_below_java_home_then_in_the_path() {
        let scratch = std::env::temp_dir().join(format!("tailwater-java-{}", std::process::id()));
        let at = |name: &str| scratch.join(name);
        for directory in ["home/bin", "path"] {
            fs::create_dir_all(at(directory)).expect("a scratch directory can be made");
            fs::write(at(directory).join("java"), "").expect("a file can be written");
        }
        let find = |home: &str, path: &str| java(Some(at(home).into()), Some(at(path).into()));
        let found = [find("home", "path"), find("nowhere", "path"), find("nowhere", "nowhere"), java(None, None)];
        fs::remove_dir_all(&scratch).expect("it is ours");
        assert_eq!(found, [Some(at("home/bin/java")), Some(at("path/java")), None, None]);
    }
}
