//! A real browser without a window: Debian's chromium, steered over a pipe [Chrome DevTools Protocol].

use std::{
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::tools;

/// Limits the time of one command, which may load a page.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Descriptors on which the browser reads commands and writes answers.
const COMMANDS: i32 = 3;
const ANSWERS: i32 = 4;

/// A browser with one page; ended when dropped.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    commands: PipeWriter,
    messages: Receiver<Value>,
    session: Option<String>,
    last_id: u64,
    problems: Vec<String>,
    profile: PathBuf,
}

/// What the page looks like.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Whether the reader prefers dark pages.
    pub is_dark: bool,
}

impl Browser {
    /// Starts a browser with an empty page.
    pub fn start() -> Result<Self> {
        let profile = env::temp_dir().join(format!("mesh-browser-{}", process::id()));
        fs::create_dir_all(&profile)?;
        let ((its_commands, commands), (answers, its_answers)) = (io::pipe()?, io::pipe()?);
        let mut command = Command::new(tools::require("chromium")?);
        command
            // Tests are run by root, for whom the sandbox does not work, and see only the project's own page.
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(profile.join("log"))?);
        let [reads, writes] = [its_commands.as_raw_fd(), its_answers.as_raw_fd()];
        // SAFETY: only system calls, which are safe between fork and exec. Copies first, as a descriptor may have the number
        // of the other's place.
        unsafe {
            command.pre_exec(move || {
                let copies = [reads, writes].map(|own| libc::fcntl(own, libc::F_DUPFD, 10));
                for (copy, place) in copies.into_iter().zip([COMMANDS, ANSWERS]) {
                    if libc::dup2(copy, place) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                    libc::close(copy);
                }
                Ok(())
            });
        }
        let process = command.spawn().context("chromium")?;
        let messages = read_messages(answers);
        let (session, problems) = (None, Vec::new());
        let mut browser = Self { process, commands, messages, session, last_id: 0, problems, profile };
        browser.attach().with_context(|| browser.log())?;
        Ok(browser)
    }

    /// Process id of the browser, whose children show the page.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Loads a page, and waits until it has all its files.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(opened["errorText"].is_null(), "{url}: {opened}");
        self.wait("the page is loaded", "document.readyState === 'complete' && location.href !== 'about:blank'")
    }

    /// Changes size and colours.
    pub fn look(&mut self, Look { size: (width, height), is_dark }: Look) -> Result<()> {
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }))?;
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size).map(drop)
    }

    /// Returns the value of an expression of JavaScript, of a promise when it is fulfilled.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let options = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut result = self.call("Runtime.evaluate", options)?;
        ensure!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        Ok(result["result"]["value"].take())
    }

    /// Waits until an expression is true.
    pub fn wait(&mut self, what: &str, expression: &str) -> Result<()> {
        let end = Instant::now() + COMMAND_TIMEOUT;
        while self.evaluate(expression)? != true {
            ensure!(Instant::now() < end, "not within {COMMAND_TIMEOUT:?}: {what}; problems: {:?}", self.problems);
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Returns a picture of what is in view, PNG.
    pub fn picture(&mut self) -> Result<Vec<u8>> {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png", "optimizeForSpeed": false }))?;
        STANDARD.decode(picture["data"].as_str().context("no picture")?).context("a picture in base64")
    }

    /// Returns exceptions and errors of the page so far: of scripts, of files, of its content security policy.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn attach(&mut self) -> Result<()> {
        let targets = self.call("Target.getTargets", json!({}))?;
        let mut targets = targets["targetInfos"].as_array().into_iter().flatten();
        let page = targets.find(|target| target["type"] == "page").context("no page")?;
        let attached = self.call("Target.attachToTarget", json!({ "targetId": page["targetId"], "flatten": true }))?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            self.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(())
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).with_context(|| method.to_owned())?;
        let end = Instant::now() + COMMAND_TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut message = self.messages.recv_timeout(left).with_context(|| format!("{method}: no answer"))?;
            if message["id"] == self.last_id {
                ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
                return Ok(message["result"].take());
            }
            let entry = &message["params"]["entry"];
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.problems.push(message["params"]["exceptionDetails"].to_string())
                }
                Some("Log.entryAdded") if entry["level"] == "error" => self.problems.push(entry.to_string()),
                Some("Inspector.targetCrashed") => bail!("the page has crashed: {}", self.log()),
                _ => {}
            }
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.profile.join("log")).unwrap_or_default()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its children end with it; it may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

/// Reads messages, each ended by a zero byte, on a thread that ends with the browser.
fn read_messages(answers: PipeReader) -> Receiver<Value> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for message in BufReader::new(answers).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { return };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    receiver
}
