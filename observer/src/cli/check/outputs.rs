//! Inspects what else `observer run` would open: the listen address, receivers, queues, certificates. Nothing is changed.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    time::Duration,
};

use crate::{
    app::emitters::Emitters,
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

pub(super) fn inspect(config: &Config) -> Outputs {
    let names = |_| config.emit.iter().map(EmitTarget::to_string).collect();
    Outputs {
        address: config.listen.0,
        listening: listen(config.listen.0),
        emitters: Emitters::prepare(config).map(names).map_err(|error| format!("{error:#}")),
        queues: queues(config),
        control_plane_ca: config.control_plane_ca.clone().map(|path| {
            let client = http_client::direct(true, Some(&path), CONNECT_TIMEOUT);
            client.map(|_| path).map_err(|error| error.to_string())
        }),
    }
}

fn listen(address: SocketAddr) -> Listening {
    match TcpListener::bind(address).map_err(|error| serve::ListenError::new(address, error)) {
        Ok(_) => Listening::Free,
        Err(serve::ListenError::Taken(_)) if is_observer(address) => Listening::Observer,
        Err(error) => Listening::Refused(error.to_string()),
    }
}

/// Whether an observer listens there, by its index page.
fn is_observer(address: SocketAddr) -> bool {
    let index = || {
        let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut response = String::new();
        stream.take(4096).read_to_string(&mut response)?;
        Ok::<_, std::io::Error>(response.contains("<title>mesh observer</title>"))
    };
    index().unwrap_or(false)
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
    use std::{path::Path, thread};

    use super::*;
    use crate::cli::args::RunArgs;

    fn outputs(text: &str) -> Outputs {
        inspect(&Config::from_text(&RunArgs::default(), Path::new("o.toml"), text).unwrap())
    }

    #[test]
    fn an_address_is_free_or_an_observers_or_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = |answer: &'static str| {
            let listener = listener.try_clone().unwrap();
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 64]);
                stream.write_all(answer.as_bytes()).unwrap();
            })
        };
        let answering = serve("HTTP/1.0 200 OK\r\n\r\n<!doctype html><title>mesh observer</title>");
        assert_eq!(listen(address), Listening::Observer);
        answering.join().unwrap();
        let answering = serve("SSH-2.0-OpenSSH");
        assert!(matches!(listen(address), Listening::Refused(why) if why.contains("taken by another process")));
        answering.join().unwrap();
        drop(listener);
        assert_eq!(listen(address), Listening::Free);
        let elsewhere = listen("192.0.2.1:1".parse().unwrap());
        assert!(matches!(elsewhere, Listening::Refused(why) if why.contains("no such address")));
    }

    #[test]
    fn what_receivers_need_is_inspected() {
        let outputs = outputs(
            "emit = [\"wavefront+https://x\"]\ncontrol_plane_ca = \"/nonexistent/ca\"\nqueue_dir = \"/dev/null/queue\"\n\
             listen = \"127.0.0.1:0\"",
        );
        assert!(outputs.emitters.unwrap_err().contains("API token"));
        assert!(outputs.control_plane_ca.unwrap().unwrap_err().contains("/nonexistent/ca"));
        let [(directory, usable)] = &outputs.queues[..] else { panic!("one queue") };
        assert!(directory.starts_with("/dev/null/queue") && usable.as_ref().unwrap_err().contains("queue directory"));
    }
}
