//! Inspects what else `observer run` would open: the listen address, receivers, queues, certificates. Nothing is changed.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use crate::{
    app::emitters::Emitters,
    cli::{outcome::block_on, own_pages::OwnPages},
    config::Config,
    emit::{
        EmitTarget,
        disk_queue::{self, directory_name},
    },
    serve,
    system::http_client,
};

/// Timeout of connections to this node.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// State of each of them.
#[derive(Clone, Debug)]
pub(super) struct Outputs {
    pub(super) address: SocketAddr,
    pub(super) listening: Listening,
    /// Names of the receivers, or why one cannot be used.
    pub(super) emitters: Result<Vec<String>, String>,
    /// Directories of the queues: whether another observer uses it, or why it cannot be used.
    pub(super) queues: Vec<(PathBuf, Result<bool, String>)>,
    /// The CA file for scrapes of the control plane.
    pub(super) control_plane_ca: Option<Result<PathBuf, String>>,
    /// The web configuration file.
    pub(super) web_config: Option<Result<PathBuf, String>>,
}

/// Whether the address can be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listening {
    /// It is free.
    Free,
    /// An observer listens there now.
    Observer,
    /// It cannot be used, for this reason.
    Refused(String),
}

/// Inspects them; `pages` are those of the observer that may run here.
pub(super) fn inspect(config: &Config, pages: &Result<OwnPages, String>) -> Outputs {
    let names = |_| config.emit.iter().map(EmitTarget::to_string).collect();
    Outputs {
        address: config.listen.0,
        listening: listen(config.listen.0, pages),
        emitters: Emitters::prepare(config).map(names).map_err(|error| format!("{error:#}")),
        queues: queues(config),
        control_plane_ca: config.control_plane_ca.clone().map(|path| {
            let client = http_client::direct(true, Some(&path), CONNECT_TIMEOUT);
            client.map(|_| path).map_err(|error| error.to_string())
        }),
        web_config: config.web_config_file.clone().map(|path| {
            let checked = serve::web_config::check(&path);
            checked.map(|()| path).map_err(|error| error.to_string())
        }),
    }
}

fn listen(address: SocketAddr, pages: &Result<OwnPages, String>) -> Listening {
    let taken = match TcpListener::bind(address).map_err(|error| serve::ListenError::new(address, error)) {
        Ok(_) => return Listening::Free,
        Err(taken @ serve::ListenError::Taken(_)) => taken,
        Err(error) => return Listening::Refused(error.to_string()),
    };
    let found = block_on(async {
        Ok(match pages {
            Ok(pages) => pages.is_observer().await.map_err(|error| error.to_string()),
            Err(problem) => Err(problem.clone()),
        })
    });
    match found {
        Ok(Ok(true)) => Listening::Observer,
        Ok(Err(problem)) => Listening::Refused(format!("{taken}; if it is an observer: {problem}")),
        _ => Listening::Refused(taken.to_string()),
    }
}

fn queues(config: &Config) -> Vec<(PathBuf, Result<bool, String>)> {
    let Some(parent) = &config.queue_dir else { return Vec::new() };
    let waits = config.emit.iter().filter(|target| !matches!(target, EmitTarget::WavefrontFile(_)));
    let directories = waits.map(|target| parent.join(directory_name(&target.to_string())));
    directories
        .map(|directory| {
            let usable = disk_queue::is_in_use(&directory).map_err(|error| error.to_string());
            (directory, usable)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        path::Path,
        thread,
    };

    use super::*;
    use crate::cli::{args::RunArgs, own_pages::ReaderArgs};

    fn outputs(text: &str) -> Outputs {
        let config = Config::from_text(&RunArgs::default(), Path::new("o.toml"), text).unwrap();
        inspect(&config, &pages(config.listen.0))
    }

    fn pages(address: SocketAddr) -> Result<OwnPages, String> {
        Ok(OwnPages::new(address, None, &ReaderArgs::default(), CONNECT_TIMEOUT).unwrap())
    }

    #[test]
    fn an_address_is_free_or_an_observers_or_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = |answer: &'static str| {
            let listener = listener.try_clone().unwrap();
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                stream.write_all(answer.as_bytes()).unwrap();
            })
        };
        for answer in [
            "HTTP/1.0 200 OK\r\n\r\n<!doctype html><title>mesh observer</title>",
            "HTTP/1.0 401 Unauthorized\r\nwww-authenticate: Basic realm=\"mesh observer\", charset=\"UTF-8\"\r\n\r\n",
        ] {
            let answering = serve(answer);
            assert_eq!(listen(address, &pages(address)), Listening::Observer);
            answering.join().unwrap();
        }
        let problem = Err("no such file".to_owned());
        assert!(matches!(listen(address, &problem), Listening::Refused(why) if why.contains("no such file")));
        let answering = serve("SSH-2.0-OpenSSH");
        assert!(
            matches!(listen(address, &pages(address)), Listening::Refused(why) if why.contains("taken by another process"))
        );
        answering.join().unwrap();
        drop(listener);
        assert_eq!(listen(address, &pages(address)), Listening::Free);
        let elsewhere = "192.0.2.1:1".parse().unwrap();
        let elsewhere = listen(elsewhere, &pages(elsewhere));
        assert!(matches!(elsewhere, Listening::Refused(why) if why.contains("no such address")));
    }

    #[test]
    fn what_receivers_need_is_inspected() {
        let outputs = outputs(
            "emit = [\"wavefront+https://x\"]\ncontrol_plane_ca = \"/nonexistent/ca\"\nweb_config_file = \"/nonexistent/web.yml\"\nqueue_dir = \"/dev/null/queue\"\n\
             listen = \"127.0.0.1:0\"",
        );
        assert!(outputs.emitters.unwrap_err().contains("API token"));
        assert!(outputs.control_plane_ca.unwrap().unwrap_err().contains("/nonexistent/ca"));
        assert!(outputs.web_config.unwrap().unwrap_err().contains("/nonexistent/web.yml"));
        let [(directory, usable)] = &outputs.queues[..] else { panic!("one queue") };
        assert!(directory.starts_with("/dev/null/queue") && usable.as_ref().unwrap_err().contains("queue directory"));
    }
}
