//! Generates Rust types, server traits and clients for Temporal's API and for Perdure's own messages.
//!
//! Temporal's definitions come as the compiled descriptor set of the crate `temporalio-protos`; nothing of them is
//! copied into this repository.

use std::{env, fs, io::Write, path::PathBuf, process::Command};

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use protox::file::{
    ChainFileResolver, DescriptorSetFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver,
};

type Error = Box<dyn std::error::Error>;

/// Packages of the descriptor set that a server has no use for.
const LEFT_OUT: [&str; 6] = [
    "coresdk",
    "temporal.api.cloud",
    "temporal.api.testservice",
    "grpc.health",
    "grpc.gateway",
    "temporal.api.nexusservices",
];

const SERVICES: [&str; 2] =
    ["temporal/api/workflowservice/v1/service.proto", "temporal/api/operatorservice/v1/service.proto"];

const OWN: [&str; 9] = [
    "perdure/state/v1/build_ids.proto",
    "perdure/state/v1/state.proto",
    "perdure/log/v1/log.proto",
    "perdure/nexus/v1/nexus.proto",
    "perdure/nexus/v1/task.proto",
    "perdure/nexus/v1/operation.proto",
    "perdure/node/v1/watch.proto",
    "perdure/node/v1/node.proto",
    "perdure/node/v1/admin.proto",
];

/// Written by hand, in `src/history.rs`.
const HISTORY: &str = ".temporal.api.history.v1.History";

/// Rare and large fields. Unboxed they would set the size of every event and call: kilobytes to move and keep.
const BOXED: [&str; 51] = [
    ".temporal.api.history.v1.HistoryEvent.attributes.workflow_execution_started_event_attributes",
    ".temporal.api.history.v1.HistoryEvent.attributes.workflow_execution_continued_as_new_event_attributes",
    ".temporal.api.history.v1.HistoryEvent.attributes.start_child_workflow_execution_initiated_event_attributes",
    ".perdure.node.v1.WorkflowCall.command.start",
    ".perdure.node.v1.WorkflowCall.command.signal_with_start",
    ".perdure.node.v1.WorkflowCall.command.child_closed",
    ".perdure.node.v1.WorkflowReply.reply.describe",
    ".perdure.state.v1.ActivityInfo.scheduled_event",
    ".perdure.state.v1.ChildInfo.initiated_event",
    ".perdure.state.v1.ExternalSignalInfo.initiated_event",
    ".perdure.state.v1.ExternalCancelInfo.initiated_event",
    ".perdure.node.v1.WorkflowCall.command.reset",
    ".perdure.node.v1.WorkflowCall.command.activity_operation",
    ".perdure.node.v1.WorkflowCall.command.update_options",
    ".perdure.node.v1.WorkflowReply.reply.activity_options",
    ".perdure.node.v1.WorkflowReply.reply.update_options",
    ".perdure.state.v1.ActivityInfo.options",
    ".perdure.state.v1.ActivityInfo.pause",
    ".perdure.state.v1.RunInfo.reset",
    ".perdure.state.v1.RunInfo.pause",
    ".perdure.state.v1.RunInfo.options",
    ".perdure.node.v1.WorkflowCall.command.batch",
    ".perdure.node.v1.WorkflowReply.reply.batch",
    ".perdure.node.v1.WorkflowCall.command.schedule",
    ".perdure.node.v1.WorkflowReply.reply.schedule",
    ".perdure.node.v1.StartWorkflow.schedule",
    ".perdure.state.v1.RunInfo.schedule",
    ".perdure.node.v1.WorkflowCall.command.activity",
    ".perdure.node.v1.WorkflowCall.command.trigger_rule",
    ".perdure.node.v1.WorkflowReply.reply.activity",
    ".perdure.node.v1.WorkflowCall.command.deployment",
    ".perdure.node.v1.WorkflowCall.command.task_queue",
    ".perdure.node.v1.WorkflowReply.reply.deployment",
    ".perdure.node.v1.Offer.directive",
    ".perdure.node.v1.QueryTask.directive",
    ".perdure.node.v1.DirectQuery.directive",
    ".perdure.state.v1.RunInfo.versioning",
    ".perdure.node.v1.WorkflowReply.reply.task_queue",
    ".perdure.node.v1.WorkflowCall.command.nexus",
    ".perdure.node.v1.WorkflowCall.command.nexus_completion",
    ".perdure.node.v1.WorkflowReply.reply.nexus",
    ".perdure.node.v1.WorkflowCall.command.nexus_operation",
    ".perdure.node.v1.WorkflowReply.reply.nexus_operation",
    ".perdure.nexus.v1.NexusReply.outcome.handler_error",
    ".perdure.nexus.v1.NexusCompletion.outcome.failure",
    ".perdure.state.v1.NexusOperationInfo.scheduled_event",
    ".perdure.state.v1.NexusOperationInfo.cancel",
    ".perdure.state.v1.NexusOperationInfo.last_attempt_failure",
    ".perdure.node.v1.MatchingCall.command.nexus",
    ".perdure.node.v1.MatchingCall.command.shutdown_worker",
    ".perdure.node.v1.MatchingReply.reply.nexus",
];

fn main() -> Result<(), Error> {
    println!("cargo:rerun-if-changed=perdure");
    println!("cargo:rerun-if-changed=build.rs");
    let api = FileDescriptorSet::decode(fs::read(env::var("DEP_TEMPORALIO_PROTOS_DESCRIPTOR_PATH")?)?.as_slice())?;
    let served = FileDescriptorSet { file: api.file.iter().filter(|f| !left_out(f.package())).cloned().collect() };
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("temporal_descriptors.bin"), with_http_rules(&api, &served)?)?;

    let mut resolver = ChainFileResolver::new();
    resolver.add(IncludeFileResolver::new(PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)));
    resolver.add(DescriptorSetFileResolver::new(api));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true).open_files(OWN)?;

    let mut all = served.file;
    for file in compiler.file_descriptor_set().file {
        if !all.iter().any(|f| f.name() == file.name()) {
            all.push(file);
        }
    }
    let mut builder = tonic_prost_build::configure();
    for field in BOXED {
        builder = builder.boxed(field);
    }
    builder
        .bytes(".")
        .codec_path("crate::codec::Codec")
        .extern_path(HISTORY, "crate::history::History")
        .include_file("all.rs")
        .emit_rerun_if_changed(false)
        .compile_fds(FileDescriptorSet { file: all })?;
    // Where the generated one would be.
    let mut of_package = fs::OpenOptions::new().append(true).open(out.join("temporal.api.history.v1.rs"))?;
    writeln!(of_package, "pub use crate::history::History;")?;
    Ok(())
}

/// The descriptors with the `google.api.http` annotations of the services. They are extensions, which the compiled set has
/// lost; so the services are compiled again, from their definitions in the source of the same crate.
fn with_http_rules(api: &FileDescriptorSet, served: &FileDescriptorSet) -> Result<Vec<u8>, Error> {
    let mut resolver = ChainFileResolver::new();
    resolver.add(OnlyServices(IncludeFileResolver::new(api_source()?)));
    resolver.add(DescriptorSetFileResolver::new(api.clone()));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(false).include_source_info(false).open_files(SERVICES)?;
    // A server keeps these in memory. Comments and places in files would be the most of it.
    let bare = |file: &FileDescriptorProto| FileDescriptorProto { source_code_info: None, ..file.clone() };
    let others = served.file.iter().filter(|file| !SERVICES.contains(&file.name())).map(bare).collect();
    // Two encoded sets, one after the other, are the set of both.
    let mut encoded = FileDescriptorSet { file: others }.encode_to_vec();
    encoded.extend(compiler.encode_file_descriptor_set());
    Ok(encoded)
}

/// Leaves all else to the descriptors that are compiled already.
struct OnlyServices(IncludeFileResolver);

impl FileResolver for OnlyServices {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if SERVICES.contains(&name) { self.0.open_file(name) } else { Err(protox::Error::file_not_found(name)) }
    }
}

/// Where the sources of the API's definitions are, which only cargo knows.
fn api_source() -> Result<PathBuf, Error> {
    let output = Command::new(env::var("CARGO")?)
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        // Sources for other platforms need not be here.
        .args(["--filter-platform", &env::var("HOST")?])
        .current_dir(env::var("CARGO_MANIFEST_DIR")?)
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("cargo metadata: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "temporalio-protos")
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("cargo metadata does not name temporalio-protos")?;
    Ok(PathBuf::from(manifest).with_file_name("protos/api_upstream"))
}

fn left_out(package: &str) -> bool {
    LEFT_OUT.iter().any(|p| package == *p || package.strip_prefix(p).is_some_and(|rest| rest.starts_with('.')))
}
