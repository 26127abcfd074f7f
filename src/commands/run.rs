//! `tailwater run`: the daemon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::live::Ends;
use super::roll_call::RollCall;
use super::{load_config, runtime, say_error, show};
use crate::cli::{Cli, Exit, Run};
use crate::config::{Config, LogFormat, OnHalt};
use crate::diagnostic::chain;
use crate::mapping::MappingFile;
use crate::mapping::resolve::resolve;
use crate::pipeline::drift::{self, Occasion, Report, Settled, Unsettled};
use crate::pipeline::{self, Context, End};
use crate::retry::{Backoff, Retry};
use crate::sink::state::TableState;
use crate::source::probe::probe;
use crate::source::setup::SetupPlan;
use crate::telemetry::board::StatusBoard;
use crate::telemetry::handles::Stage;
use crate::telemetry::http::{HttpState, serve};
use crate::telemetry::log::{self, Format};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::status::SourceState;

/// Wait of a standby before it looks again.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);
/// After a run that lasted so long, an end that comes back interrupts at once again.
const CALM: Duration = Duration::from_secs(60);

pub fn run(cli: &Cli, args: &Run) -> Exit {
    let config = match load_config(cli) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let configured = if config.log.format == LogFormat::Json { Format::Json } else { Format::Human };
    let format = args.log_format.unwrap_or(configured);
    if let Err(error) = log::init(format, cli.color.on(&std::io::stderr()), &config.log.level) {
        say_error(&format!("error: {}", chain(&error)));
        return Exit::Usage;
    }
    // What was parsed stays in memory: nothing else of this process needs the environment.
    let runtime = runtime();
    let exit = runtime.block_on(daemon(cli, config));
    // A blocked connection attempt must not hold up the exit.
    runtime.shutdown_background();
    exit
}

async fn daemon(cli: &Cli, config: Config) -> Exit {
    let config = Arc::new(config);
    let files = match crate::mapping::load(&config) {
        Ok(files) => files,
        Err(findings) => {
            show(cli, &findings);
            return Exit::Usage;
        }
    };
    let mut roll_call = RollCall::new(config.clone(), &files);
    let settled = tokio::select! {
        settled = prepare(&config, &files, Occasion::Start, &mut roll_call, Ends::default()) => match settled {
            Ok(settled) => settled,
            Err(end) => return finish(end),
        },
        () = stop_signal() => return Exit::Done,
    };
    show(cli, &settled.findings);
    if settled.findings.has_errors() {
        return Exit::Findings;
    }
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let board = StatusBoard::new(env!("CARGO_PKG_VERSION"), metrics.clone());
    let (stop, stopped) = watch::channel(false);
    if let Some(listen) = config.http.listen {
        let state = HttpState { metrics: metrics.clone(), board: board.clone() };
        match serve(listen, state, std::future::pending()).await {
            Ok((bound, serving)) => {
                info!(address = %bound, "status at http://{bound}/");
                tokio::spawn(serving);
            }
            Err(error) => {
                say_error(&format!(
                    "error: cannot listen on {listen}: {error}\nhint: Set [http] listen to a free address."
                ));
                return Exit::Failed;
            }
        }
    }
    tokio::spawn(async move {
        stop_signal().await;
        let _ = stop.send(true);
        stop_signal().await;
        std::process::exit(1);
    });
    let on_halt = config.on_halt;
    let mut until_stopped = stopped.clone();
    let context = Arc::new(Context { config, metrics, board, stop: stopped });
    let end = match runs(cli, &context, &files, roll_call, settled).await {
        Ok(end) => end,
        Err(exit) => return exit,
    };
    let stays = on_halt == OnHalt::Stay && matches!(end, End::Halt(_));
    let exit = finish(end);
    if stays {
        info!("staying, so that the verdict can be seen; stop with SIGTERM");
        // The sender lives in the task that waits for the signal.
        let _ = until_stopped.wait_for(|stop| *stop).await;
    }
    exit
}

/// One run after the other, until one of them ends for good. `Err` if what a run would begin with is wrong; that has been said.
async fn runs(
    cli: &Cli,
    context: &Arc<Context>,
    files: &[MappingFile],
    mut roll_call: RollCall,
    mut settled: Settled,
) -> Result<End, Exit> {
    let mut until_stopped = context.stop.clone();
    // An end that comes and goes must not interrupt the others all the time.
    let mut interruptions = Backoff::new(u64::from(std::process::id()));
    let mut quiet = Duration::ZERO;
    loop {
        report(context, &settled.reports);
        let began = Instant::now();
        let mut known = Ends::default();
        let back = async {
            tokio::time::sleep(quiet).await;
            known = roll_call.back().await;
        };
        let end = pipeline::run(context.clone(), &settled.resolved, back).await;
        let before = &settled.resolved;
        let occasion = match &end {
            End::Drift(drift) => {
                drift::announce(drift);
                Occasion::Drift { drift, before }
            }
            End::Back => Occasion::Back { before },
            End::Stopped | End::Halt(_) | End::NotSetUp(_) | End::Failed(_) => return Ok(end),
        };
        if began.elapsed() >= CALM {
            interruptions.reset();
        }
        quiet = interruptions.next().unwrap_or_default();
        for plan in &before.plans {
            context.board.source_state(&plan.source, SourceState::Connecting);
        }
        let again = tokio::select! {
            again = prepare(&context.config, files, occasion, &mut roll_call, known) => again,
            _ = until_stopped.wait_for(|stop| *stop) => return Ok(End::Stopped),
        };
        match again {
            Ok(again) if again.findings.has_errors() => {
                show(cli, &again.findings);
                return Err(Exit::Findings);
            }
            Ok(again) => settled = again,
            Err(end) => return Ok(end),
        }
    }
}

/// Both ends as they are now, and what is to run between them. Waits until there is something: ends that do not answer are left
/// out. `known` are ends that have just answered.
async fn prepare(
    config: &Config,
    files: &[MappingFile],
    occasion: Occasion<'_>,
    roll_call: &mut RollCall,
    mut known: Ends,
) -> Result<Settled, End> {
    let mut backoff = Backoff::new(u64::from(std::process::id()));
    loop {
        let mut ends = roll_call.gather(std::mem::take(&mut known)).await;
        if ends.findings.has_errors() {
            return Ok(resolved_only(config, files, &mut ends).await);
        }
        let (sessions, live) = ends.sessions();
        let error = match drift::settle(config, files, live, sessions, occasion).await {
            Ok(mut settled) => {
                settled.findings.0.splice(0..0, std::mem::take(&mut ends.findings).0);
                not_set_up(config, &ends, &mut settled).await;
                return Ok(settled);
            }
            Err(Unsettled::Stop(message)) => return Err(End::Failed(message)),
            Err(error @ Unsettled::StandBy) => {
                info!("standing by: {error}");
                tokio::time::sleep(STANDBY_PAUSE).await;
                continue;
            }
            Err(error @ (Unsettled::Sql(_) | Unsettled::ClickHouse(_) | Unsettled::Kafka(_))) => error,
        };
        if error.retry() == Retry::Never {
            // What stands in the way, the start-up decision meets as well, and says.
            return match occasion {
                Occasion::Start | Occasion::Look | Occasion::Back { .. } => {
                    Ok(resolved_only(config, files, &mut ends).await)
                }
                Occasion::Drift { .. } => Err(End::Failed(error.to_string())),
            };
        }
        warn!(%error, "tables not looked at, waiting");
        tokio::time::sleep(backoff.next().unwrap_or_default()).await;
    }
}

/// Without a look at what became of the tables.
async fn resolved_only(config: &Config, files: &[MappingFile], ends: &mut Ends) -> Settled {
    let (resolved, found) = resolve(config, files, &ends.live);
    let mut findings = std::mem::take(&mut ends.findings);
    findings.0.extend(found.0);
    let mut settled = Settled { resolved, findings, ..Settled::default() };
    not_set_up(config, ends, &mut settled).await;
    settled
}

/// A source that went away meanwhile is waited for by the pipeline, and one that has a slot is for the start-up decision to
/// judge.
async fn not_set_up(config: &Config, ends: &Ends, settled: &mut Settled) {
    for (name, client) in &ends.sources {
        let source = &config.sources[name];
        if let Ok(found) = probe(client, &source.slot, &source.publication).await
            && found.slot.is_none()
        {
            let published = settled.resolved.published.get(name).cloned().unwrap_or_default();
            super::check::add_setup(&mut settled.findings, &SetupPlan::make(&published, &found));
        }
    }
}

/// Tells whoever watches what became of tables.
fn report(context: &Context, reports: &[Report]) {
    for report in reports {
        let table = report.target.to_string();
        context.board.error(Stage::Map, "schema", &table, &report.message);
        context.board.table_reason(&report.source, &report.sink, &table, Some(&report.message));
        if report.is_quarantined {
            context.metrics.table(&report.source, &report.sink, &table).set_state(TableState::Quarantined);
        }
    }
}

/// The end of a run as an exit code and a last word.
fn finish(end: End) -> Exit {
    match end {
        // That an end is back ends a run, not the daemon.
        End::Stopped | End::Back => {
            info!("stopped");
            Exit::Done
        }
        End::Halt(halt) => {
            error!(reason = halt.code(), "halted: {halt}");
            say_error(&format!("error: {halt}\nhint: {}", halt.hint()));
            Exit::ALL.into_iter().find(|exit| exit.code() == halt.exit_code()).unwrap_or(Exit::Failed)
        }
        End::Drift(drift) => {
            say_error(&format!("error: table \"{}\" changed: {}", drift.table, drift.why));
            Exit::Failed
        }
        End::NotSetUp(what) => {
            say_error(&format!("error: {what}\nhint: Run `tailwater setup`."));
            Exit::Findings
        }
        End::Failed(message) => {
            say_error(&format!("error: {message}"));
            Exit::Failed
        }
    }
}

/// Ends at the next SIGTERM or SIGINT.
async fn stop_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
