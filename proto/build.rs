//! Generates Rust types, server traits and clients for Temporal's API and for Perdure's own messages.
//!
//! Temporal's definitions come as the compiled descriptor set of the crate `temporalio-protos`; nothing of them is
//! copied into this repository.

use std::{env, fs, path::PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;
use protox::file::{ChainFileResolver, DescriptorSetFileResolver, GoogleFileResolver, IncludeFileResolver};

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

const OWN: [&str; 3] = ["perdure/state/v1/state.proto", "perdure/log/v1/log.proto", "perdure/node/v1/node.proto"];

/// Rare and large fields. Unboxed they would set the size of every event and call: kilobytes to move and keep.
const BOXED: [&str; 25] = [
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
    ".perdure.node.v1.WorkflowCall.command.schedule",
    ".perdure.node.v1.WorkflowReply.reply.schedule",
    ".perdure.node.v1.StartWorkflow.schedule",
    ".perdure.state.v1.RunInfo.schedule",
];

fn main() -> Result<(), Error> {
    println!("cargo:rerun-if-changed=perdure");
    println!("cargo:rerun-if-changed=build.rs");
    let api = FileDescriptorSet::decode(fs::read(env::var("DEP_TEMPORALIO_PROTOS_DESCRIPTOR_PATH")?)?.as_slice())?;
    let served = FileDescriptorSet { file: api.file.iter().filter(|f| !left_out(f.package())).cloned().collect() };
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("temporal_descriptors.bin"), served.encode_to_vec())?;

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
        .include_file("all.rs")
        .emit_rerun_if_changed(false)
        .compile_fds(FileDescriptorSet { file: all })?;
    Ok(())
}

fn left_out(package: &str) -> bool {
    LEFT_OUT.iter().any(|p| package == *p || package.strip_prefix(p).is_some_and(|rest| rest.starts_with('.')))
}
