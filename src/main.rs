//! The `vman` program: `vman serve` is the daemon, everything else asks it.

use clap::Parser;
use std::process::ExitCode;
use vman::{
    app::{self, offline::OfflineError},
    cli::{
        self, Args, Command, ConfigFlags, Global, Terminal,
        args::{Format, StoreCommand, UpgradeCommand},
        view,
    },
    config::{Config, Environment},
    telemetry,
};

/// The exit code for a wrong configuration, as for wrong usage.
const WRONG_CONFIGURATION: u8 = 2;
const NO_THREADS: &str = "a process that may not start threads cannot do anything else either";

fn main() -> ExitCode {
    let args = Args::parse();
    let environment = Environment::capture();
    let flags = match &args.command {
        Command::Serve(flags) => flags,
        Command::Store(StoreCommand::Rebuild { force, config }) => {
            let overrides = config.overrides(&args.global);
            return match Config::load(&overrides, &environment) {
                Ok(config) => offline(app::offline::rebuild(&config, *force)),
                Err(error) => fail(&error, WRONG_CONFIGURATION),
            };
        }
        Command::Store(StoreCommand::Check {
            offline: true,
            config,
        }) => return store_check(config, &args.global, &environment),
        Command::Upgrade(UpgradeCommand::Check(flags)) => {
            return upgrade_check(flags, &args.global, &environment);
        }
        _ => return runtime(1).block_on(cli::run(args, &environment)),
    };
    let config = match Config::load(&flags.overrides(&args.global), &environment) {
        Ok(config) => config,
        Err(error) => return fail(&error, WRONG_CONFIGURATION),
    };
    let log = match telemetry::init(&config.log) {
        Ok(guard) => guard,
        Err(error) => return fail(&error, 1),
    };
    #[cfg(feature = "failpoints")]
    watch_steps();
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    // As many threads as processors, but for the store's: half of them for HTTP.
    let threads = processors.div_ceil(2).max(2);
    let front = app::front::runtime(threads).expect(NO_THREADS);
    let (overrides, log) = (flags.overrides(&args.global), log.control());
    let outer = app::Outer {
        log,
        reread: Box::new(move || Config::load(&overrides, &environment)),
        front: front.handle().clone(),
    };
    match runtime(threads).block_on(app::run(config, outer)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "VMAN ends");
            fail(&error, error.exit_code())
        }
    }
}

/// Has this process die at a step, or write down which it passes.
#[cfg(feature = "failpoints")]
fn watch_steps() {
    use vman_actors::failpoint;
    let log = std::env::var_os("FAILPOINT_LOG").map(|path| {
        let mut log = std::fs::File::options();
        let log = log.create(true).append(true).open(path);
        Box::new(log.expect("a test names a file that can be written")) as failpoint::Log
    });
    failpoint::arm(std::env::var("FAILPOINT").ok(), std::process::abort, log);
}

/// Work on the files while no daemon runs.
fn offline(work: impl Future<Output = Result<Vec<String>, OfflineError>>) -> ExitCode {
    match runtime(1).block_on(work) {
        Ok(lines) => {
            let mut terminal = Terminal::of_process();
            for line in lines {
                if let Err(error) = terminal.line(&line) {
                    return fail(&error, 1);
                }
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// Checks the store while no daemon runs.
fn store_check(flags: &ConfigFlags, global: &Global, environment: &Environment) -> ExitCode {
    let config = match Config::load(&flags.overrides(global), environment) {
        Ok(config) => config,
        Err(error) => return fail(&error, WRONG_CONFIGURATION),
    };
    let checked = match app::offline::check(&config) {
        Ok(checked) => checked,
        Err(error) => return fail(&error, error.exit_code()),
    };
    match cli::tell_store_check(&checked, global.output, &mut Terminal::of_process()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.exit_code()),
    }
}

fn upgrade_check(flags: &ConfigFlags, global: &Global, environment: &Environment) -> ExitCode {
    let config = match Config::load(&flags.overrides(global), environment) {
        Ok(config) => config,
        Err(error) => return fail(&error, WRONG_CONFIGURATION),
    };
    let report = app::upgrade::check(&config.storage.path);
    let mut terminal = Terminal::of_process();
    let printed = match global.output {
        Format::Table | Format::Name => terminal.line(&report.lines().join("\n")),
        format => {
            let value = serde_json::to_value(&report).unwrap_or_default();
            view::document(&value, format, &mut terminal)
        }
    };
    match printed {
        Ok(()) => ExitCode::from(report.exit_code()),
        Err(error) => fail(&error, error.exit_code()),
    }
}

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("vman")
        .enable_all()
        .build()
        .expect(NO_THREADS)
}

#[allow(clippy::print_stderr)]
fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("vman: {error}");
    ExitCode::from(code)
}
