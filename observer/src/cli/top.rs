//! `observer top`: the table of calls in a terminal, of a running observer or of one that it starts for itself.

pub mod api;
mod own_observer;
mod poll;
mod screen;

use std::{
    env,
    io::{self, IsTerminal as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, bail};
use observer_top::{App, Document, Options, Order, Palette, page};
use tokio::time::sleep;

use self::{
    api::{Api, ObserverUrl, ReadError},
    own_observer::OwnObserver,
};
use super::{
    args::TopArgs,
    outcome::{Failure, block_on, print},
};
use crate::{config::values::DEFAULT_LISTEN, system::capabilities};

/// Limits the time until an own observer answers: the kernel's verifier may take long.
const START_TIMEOUT: Duration = Duration::from_mins(3);
/// Pause between attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Shows the table until the user quits, or prints it once.
///
/// # Errors
/// No observer answers, or there is no terminal.
pub fn run(args: TopArgs) -> Result<(), Failure> {
    if args.observe_only {
        return own_observer::observe(args.node);
    }
    if !args.once && !io::stdout().is_terminal() {
        let text = "standard output is not a terminal; `observer top --once` prints the table and exits";
        return Err(Failure::wrong_usage(Error::msg(text)));
    }
    let named =
        args.url.clone().transpose().map_err(|error| Failure::wrong_usage(Error::msg(format!("--url: {error}"))))?;
    let mut printed = String::new();
    block_on(async {
        let Target { api, first, observer } = find(named, args.url_ca_file.as_deref()).await?;
        capabilities::drop_all().context("capabilities cannot be dropped")?;
        let order = Order::by(args.sort);
        if args.once {
            sleep(args.interval.0).await;
            printed = page(api.document().await?, order, &args.filter);
            return Ok(());
        }
        let source = observer.as_ref().map_or_else(|| api.url.to_string(), |_| "observing by itself".to_owned());
        let options = Options { source, order, filter: args.filter.clone(), palette: palette() };
        screen::show(App::new(options, first), api, args.interval.0, observer).await
    })?;
    print(printed.as_bytes())
}

/// An observer that answers.
struct Target {
    api: Api,
    /// Its first document.
    first: Document,
    /// The observer itself if this command has started it.
    observer: Option<OwnObserver>,
}

/// Finds the observer with this address, or the one of this node, or starts one.
async fn find(named: Option<ObserverUrl>, ca_file: Option<&Path>) -> Result<Target> {
    let is_named = named.is_some();
    let api = Api::new(named.unwrap_or_else(|| ObserverUrl::of(DEFAULT_LISTEN.0)), ca_file)?;
    match api.document().await {
        Ok(first) => Ok(Target { api, first, observer: None }),
        Err(error @ ReadError::NoAnswer { .. }) if !is_named => {
            match capabilities::held().map(capabilities::missing_required) {
                Ok(None) => start(&error).await,
                _ => bail!(
                    "{error}; start one with `observer run`, name another with --url, or be root: then this command observes by itself"
                ),
            }
        }
        Err(error @ ReadError::NoAnswer { .. }) => {
            bail!("{error}; start one there with `observer run --listen ADDR:PORT`, or name another with --url")
        }
        Err(error) => Err(error.into()),
    }
}

/// Starts an observer, and waits until it answers.
async fn start(missing: &ReadError) -> Result<Target> {
    eprintln!("{missing}: observing by itself");
    let mut observer = OwnObserver::start()?;
    let api = Api::new(observer.url(), None)?;
    let began = Instant::now();
    loop {
        match api.document().await {
            Ok(first) => return Ok(Target { api, first, observer: Some(observer) }),
            Err(error) => {
                observer.check()?;
                if began.elapsed() > START_TIMEOUT {
                    return Err(error.into());
                }
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Colours unless they are not wanted [no-color.org] or the terminal has none.
fn palette() -> Palette {
    let is_set = |name: &str, of: fn(&str) -> bool| env::var(name).is_ok_and(|value| of(&value));
    Palette { is_coloured: !is_set("NO_COLOR", |value| !value.is_empty()) && !is_set("TERM", |value| value == "dumb") }
}
