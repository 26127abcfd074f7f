//! `tailwater run`: the daemon.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info};

use super::live::{Patience, connect_all};
use super::{load_config, runtime, say_error, show};
use crate::cli::{Cli, Exit, Run};
use crate::config::{Config, LogFormat, OnHalt};
use crate::diagnostic::chain;
use crate::mapping::resolve::{Resolved, resolve};
use crate::pipeline::{self, Context, End};
use crate::source::probe::probe;
use crate::source::setup::SetupPlan;
use crate::telemetry::board::StatusBoard;
use crate::telemetry::http::{HttpState, serve};
use crate::telemetry::log::{self, Format};
use crate::telemetry::metrics::Metrics;

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
    let resolved = tokio::select! {
        resolved = resolve_ends(cli, &config) => match resolved {
            Ok(resolved) => resolved,
            Err(exit) => return exit,
        },
        () = stop_signal() => return Exit::Done,
    };
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
    let context = Arc::new(Context { config: Arc::new(config), metrics, board, stop: stopped });
    let end = pipeline::run(context, &resolved).await;
    let stays = on_halt == OnHalt::Stay && matches!(end, End::Halt(_));
    let exit = finish(end);
    if stays {
        info!("staying, so that the verdict can be seen; stop with SIGTERM");
        // The sender lives in the task that waits for the signal.
        let _ = until_stopped.wait_for(|stop| *stop).await;
    }
    exit
}

async fn resolve_ends(cli: &Cli, config: &Config) -> Result<Resolved, Exit> {
    let files = crate::mapping::load(config).map_err(|findings| {
        show(cli, &findings);
        Exit::Usage
    })?;
    let mut ends = connect_all(config, Patience::Wait).await;
    let (resolved, found) = resolve(config, &files, &ends.live);
    ends.findings.0.extend(found.0);
    for (name, client) in &ends.sources {
        let source = &config.sources[name];
        // A source that went away meanwhile is waited for by the pipeline, and one that has a slot is for the start-up
        // decision to judge.
        if let Ok(found) = probe(client, &source.slot, &source.publication).await
            && found.slot.is_none()
        {
            let published = resolved.published.get(name).cloned().unwrap_or_default();
            super::check::add_setup(&mut ends.findings, &SetupPlan::make(&published, &found));
        }
    }
    show(cli, &ends.findings);
    if ends.findings.has_errors() { Err(Exit::Findings) } else { Ok(resolved) }
}

/// The end of a run as an exit code and a last word.
fn finish(end: End) -> Exit {
    match end {
        End::Stopped => {
            info!("stopped");
            Exit::Done
        }
        End::Halt(halt) => {
            error!(reason = halt.code(), "halted: {halt}");
            say_error(&format!("error: {halt}\nhint: {}", halt.hint()));
            Exit::ALL.into_iter().find(|exit| exit.code() == halt.exit_code()).unwrap_or(Exit::Failed)
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
