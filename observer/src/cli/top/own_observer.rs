//! An observer that the table starts for itself where none runs: a process of its own, so that it has the privileges and
//! restrictions of every observer, and the terminal has none of them.

use std::{
    collections::VecDeque,
    env,
    io::{self, BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Error, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::api::ObserverUrl;
use crate::{
    app::{self, emitters::Emitters},
    cli::{
        args::{NodeArgs, RunArgs},
        outcome::{Failure, block_on, configure, drop_privileges},
    },
    serve::{self, Protection},
};

/// Lines of the log that are kept for the case that it ends.
const LOG_LINES: usize = 5;

/// The process; stopped when dropped.
pub(super) struct OwnObserver {
    process: Child,
    address: SocketAddr,
    log: Log,
}

/// The last lines on its standard error.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<VecDeque<String>>>);

impl OwnObserver {
    /// Starts it with the options of this command; connections wait until it serves.
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port on 127.0.0.1")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut process = Command::new(env::current_exe()?)
            .args(env::args_os().skip(1))
            .arg("--observe-only")
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("the observer cannot be started")?;
        let log = Log::default();
        if let Some(errors) = process.stderr.take() {
            let log = log.clone();
            thread::spawn(move || BufReader::new(errors).lines().map_while(Result::ok).for_each(|line| log.add(line)));
        }
        Ok(Self { process, address, log })
    }

    pub(super) fn url(&self) -> ObserverUrl {
        ObserverUrl::of(self.address)
    }

    /// Fails if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the observer of this command has ended with {status}:\n{}", self.log.text()),
        }
    }
}

impl Drop for OwnObserver {
    fn drop(&mut self) {
        let id = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        // It may have ended already. It ends within the time that every observer takes at most.
        if self.process.try_wait().is_ok_and(|status| status.is_none())
            && id.is_some_and(|id| kill_process(id, Signal::TERM).is_ok())
        {
            let _ = self.process.wait();
        }
    }
}

impl Log {
    fn add(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(line);
        if lines.len() > LOG_LINES {
            lines.pop_front();
        }
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| observer_top::clean(line)).collect::<Vec<_>>().join("\n")
    }
}

/// Observes and serves on the socket that is the standard input, until stopped or until the process that started it ends.
/// Nothing is pushed or kept.
///
/// # Errors
/// As those of `observer run`.
pub(super) fn observe(node: NodeArgs) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| Failure::could_not_run(Error::new(io::Error::from(error)).context("prctl")))?;
    let args = RunArgs { node, ..RunArgs::default() };
    let mut config = configure(&args)?;
    (config.pin, config.emit, config.queue_dir, config.web_config_file) = (None, Vec::new(), None, None);
    drop_privileges()?;
    let emitters = Emitters::prepare(&config).map_err(Failure::wrong_usage)?;
    let protection = Protection::load(None, config.hosts()).map_err(|error| Failure::wrong_usage(error.into()))?;
    let socket = io::stdin().as_fd().try_clone_to_owned();
    block_on(async {
        let listening = socket.and_then(|socket| serve::adopt(TcpListener::from(socket)));
        let listening = listening.context("standard input is not a socket that listens")?;
        app::run(&config, &args, emitters, listening, protection).await
    })
}
