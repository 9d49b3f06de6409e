//! The real binary as a child process: starts it, reads its log, ends it.

#![allow(dead_code)] // Each test binary uses a part of it.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use perdure_proto::temporal::api::{
    common::v1::{WorkflowExecution, WorkflowType},
    taskqueue::v1::TaskQueue,
    workflowservice::v1::{
        DescribeWorkflowExecutionRequest, StartWorkflowExecutionRequest, workflow_service_client::WorkflowServiceClient,
    },
};
use tonic::transport::{Channel, Endpoint};

pub const BINARY: &str = env!("CARGO_BIN_EXE_perdure");
pub const NAMESPACE: &str = "default";
/// Far more than anything here takes, a new schema in Cassandra included, on a machine that is busy with other tests too.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What the process has written to standard error so far.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

pub struct Server {
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    /// Host and port of the API; empty until it is ready.
    pub address: String,
    pub metrics_address: String,
}

impl Server {
    /// `perdure dev` with data in `directory`, on ports that the system chooses, when it is ready.
    pub fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut server = Self::spawn(dev(directory, arguments));
        server.wait_until_ready();
        server
    }

    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let (stderr, writer) = (child.stderr.take().unwrap(), log.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                writer.lines.lock().unwrap().0.push(String::from_utf8_lossy(&line).into_owned());
                writer.grown.notify_all();
            }
            writer.lines.lock().unwrap().1 = true;
            writer.grown.notify_all();
        });
        Self { child, log, reader: Some(reader), address: String::new(), metrics_address: String::new() }
    }

    pub fn wait_until_ready(&mut self) {
        let line = self.wait_for_line("perdure is ready");
        self.address = field(&line, "address").to_owned();
        self.metrics_address = field(&line, "metrics").to_owned();
    }

    /// The first line that contains `text`, as soon as there is one.
    pub fn wait_for_line(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.0.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!lines.1 && !left.is_zero(), "no log line with {text:?} in\n{}", lines.0.join("\n"));
            lines = self.log.grown.wait_timeout(lines, left).unwrap().0;
        }
    }

    pub fn log(&self) -> String {
        self.log.lines.lock().unwrap().0.join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it ends by itself: its exit status, and all that it logged.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "still running:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        };
        self.reader.take().unwrap().join().unwrap();
        (status, self.log())
    }

    pub async fn client(&self) -> WorkflowServiceClient<Channel> {
        WorkflowServiceClient::new(self.channel().await)
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `perdure dev`, on a port that the system chooses unless the arguments name one.
pub fn dev(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["dev", "--db-filename"]).arg(directory).args(arguments);
    if !arguments.contains(&"--port") {
        command.args(["--port", "0"]);
    }
    command
}

/// Runs it to its end: exit code and log.
pub fn run(command: Command) -> (Option<i32>, String) {
    let (status, log) = Server::spawn(command).wait();
    (status.code(), log)
}

/// The value of `name=value` in a log line.
pub fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, rest) = line.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split_whitespace().next().unwrap_or_default()
}

pub fn start_request(workflow_id: &str) -> StartWorkflowExecutionRequest {
    StartWorkflowExecutionRequest {
        namespace: NAMESPACE.into(),
        workflow_id: workflow_id.into(),
        request_id: workflow_id.into(),
        workflow_type: Some(WorkflowType { name: "Any".into() }),
        task_queue: Some(queue("queue")),
        ..Default::default()
    }
}

pub fn queue(name: &str) -> TaskQueue {
    TaskQueue { name: name.into(), ..Default::default() }
}

pub fn execution(workflow_id: &str) -> WorkflowExecution {
    WorkflowExecution { workflow_id: workflow_id.into(), run_id: String::new() }
}

pub fn describe(workflow_id: &str) -> DescribeWorkflowExecutionRequest {
    DescribeWorkflowExecutionRequest { namespace: NAMESPACE.into(), execution: Some(execution(workflow_id)) }
}
