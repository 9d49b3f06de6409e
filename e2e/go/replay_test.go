package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

func pay(context.Context, string) error { return nil }

// billing is what ran first; patchedBilling is a later version that can still replay it, brokenBilling one that cannot.
func billing(ctx workflow.Context) (string, error) {
	return "plain", workflow.ExecuteActivity(quick(ctx), pay, "ada").Get(ctx, nil)
}

func patchedBilling(ctx workflow.Context) (string, error) {
	if workflow.GetVersion(ctx, "wait-first", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return billing(ctx)
	}
	if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
		return "", err
	}
	return "patched", workflow.ExecuteActivity(quick(ctx), pay, "ada").Get(ctx, nil)
}

func brokenBilling(ctx workflow.Context) (string, error) {
	if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
		return "", err
	}
	return "broken", workflow.ExecuteActivity(quick(ctx), pay, "ada").Get(ctx, nil)
}

func replay(e *env, function any, name string, run client.WorkflowRun) error {
	replayer := worker.NewWorkflowReplayer()
	replayer.RegisterWorkflowWithOptions(function, workflow.RegisterOptions{Name: name})
	history := &historypb.History{Events: e.history(run)}
	return replayer.ReplayWorkflowHistory(quietLogger{}, history)
}

func TestReplayAndVersioning(t *testing.T) {
	e := setup(t)
	w := e.worker(nil, pay)
	w.RegisterWorkflowWithOptions(billing, workflow.RegisterOptions{Name: "billing"})
	w.RegisterWorkflowWithOptions(patchedBilling, workflow.RegisterOptions{Name: "patched"})

	old := e.start("billing")
	require.Equal(t, "plain", result[string](e, old))
	require.NoError(t, replay(e, billing, "billing", old))
	require.NoError(t, replay(e, patchedBilling, "billing", old), "a patched version replays an old history")
	require.ErrorContains(t, replay(e, brokenBilling, "billing", old), "TMPRL1100", "the SDK's code for non-determinism")

	patched := e.start("patched")
	require.Equal(t, "patched", result[string](e, patched))
	require.NoError(t, replay(e, patchedBilling, "patched", patched))
	require.Len(t, only(e.history(patched), enumspb.EVENT_TYPE_MARKER_RECORDED), 1)
}

// A worker with changed code fails the workflow task, not the workflow; the right code then finishes it.
func TestNonDeterminismIsRecorded(t *testing.T) {
	e := setup(t)
	original := func(ctx workflow.Context) (string, error) {
		workflow.GetSignalChannel(ctx, "go").Receive(ctx, nil)
		return billing(ctx)
	}
	changed := func(ctx workflow.Context) (string, error) { return brokenBilling(ctx) }

	paused := func(ctx workflow.Context) (string, error) {
		if err := workflow.ExecuteActivity(quick(ctx), pay, "ada").Get(ctx, nil); err != nil {
			return "", err
		}
		return original(ctx)
	}
	named := workflow.RegisterOptions{Name: "job"}
	first := e.worker(nil, pay)
	first.RegisterWorkflowWithOptions(paused, named)
	run := e.start("job")
	e.eventually("the first activity has completed", func() bool {
		return len(only(e.history(run), enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED)) == 1
	})
	first.Stop()

	second := e.worker(nil, pay)
	second.RegisterWorkflowWithOptions(changed, named)
	require.NoError(t, e.SignalWorkflow(e.Context, run.GetID(), "", "go", nil))
	e.eventually("the workflow task has failed", func() bool {
		return len(only(e.history(run), enumspb.EVENT_TYPE_WORKFLOW_TASK_FAILED)) > 0
	})
	second.Stop()
	failed := only(e.history(run), enumspb.EVENT_TYPE_WORKFLOW_TASK_FAILED)[0].GetWorkflowTaskFailedEventAttributes()
	require.Equal(t, enumspb.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR, failed.Cause)

	third := e.worker(nil, pay)
	third.RegisterWorkflowWithOptions(paused, named)
	require.Equal(t, "plain", result[string](e, run))
}

func TestSideEffects(t *testing.T) {
	e := setup(t)
	calls := 0
	random := func(ctx workflow.Context) (values []int, err error) {
		next := func() int { calls++; return calls }
		for range 2 {
			var value int
			encoded := workflow.SideEffect(ctx, func(workflow.Context) any { return next() })
			if err = encoded.Get(&value); err != nil {
				return
			}
			values = append(values, value)
			equal := func(a, b any) bool { return a == b }
			encoded = workflow.MutableSideEffect(ctx, "setting", func(workflow.Context) any { return 7 }, equal)
			if err = encoded.Get(&value); err != nil {
				return
			}
			values = append(values, value)
			if err = workflow.Sleep(ctx, time.Millisecond); err != nil {
				return
			}
		}
		return
	}
	w := e.worker(nil)
	w.RegisterWorkflowWithOptions(random, workflow.RegisterOptions{Name: "random"})

	run := e.start("random")
	require.Equal(t, []int{1, 7, 2, 7}, result[[]int](e, run))
	require.NoError(t, replay(e, random, "random", run))
	require.Equal(t, 2, calls, "a replay takes the recorded values")
	require.Len(t, only(e.history(run), enumspb.EVENT_TYPE_MARKER_RECORDED), 3)
}
