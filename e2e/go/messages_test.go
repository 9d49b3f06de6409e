package e2e

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

// basket collects items from signals until it is told to stop, and answers queries about them.
func basket(ctx workflow.Context) ([]string, error) {
	items := []string{}
	if err := workflow.SetQueryHandler(ctx, "items", func() ([]string, error) { return items, nil }); err != nil {
		return nil, err
	}
	err := workflow.SetQueryHandler(ctx, "broken", func() (string, error) { return "", errors.New("cannot say") })
	if err != nil {
		return nil, err
	}
	done := false
	selector := workflow.NewSelector(ctx)
	selector.AddReceive(workflow.GetSignalChannel(ctx, "add"), func(c workflow.ReceiveChannel, _ bool) {
		var item string
		c.Receive(ctx, &item)
		items = append(items, item)
	})
	selector.AddReceive(workflow.GetSignalChannel(ctx, "done"), func(c workflow.ReceiveChannel, _ bool) {
		c.Receive(ctx, nil)
		done = true
	})
	for !done {
		selector.Select(ctx)
	}
	return items, nil
}

func query[T any](e *env, id, name string) T {
	e.Helper()
	value, err := e.QueryWorkflow(e.Context, id, "", name)
	require.NoError(e.T, err)
	var out T
	require.NoError(e.T, value.Get(&out))
	return out
}

func TestSignalsAndQueries(t *testing.T) {
	e := setup(t)
	e.worker([]any{basket})
	run := e.start(basket)

	var sent []string
	for _, item := range []string{"a", "b", "c", "d", "e"} {
		require.NoError(t, e.SignalWorkflow(e.Context, run.GetID(), "", "add", item))
		sent = append(sent, item)
		require.Equal(t, sent, query[[]string](e, run.GetID(), "items"), "a query sees every signal acknowledged before it")
	}
	_, err := e.QueryWorkflow(e.Context, run.GetID(), "", "broken")
	var failed *serviceerror.QueryFailed
	require.True(t, errors.As(err, &failed), "%v", err)
	require.Contains(t, failed.Message, "cannot say")

	require.NoError(t, e.SignalWorkflow(e.Context, run.GetID(), "", "done", nil))
	require.Equal(t, sent, result[[]string](e, run))
	require.Equal(t, sent, query[[]string](e, run.GetID(), "items"), "a closed run can be queried")
	require.Len(t, only(e.history(run), enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED), 6)

	var notFound *serviceerror.NotFound
	err = e.SignalWorkflow(e.Context, run.GetID(), "", "add", "late")
	require.True(t, errors.As(err, &notFound), "%v", err)
}

func TestSignalWithStart(t *testing.T) {
	e := setup(t)
	e.worker([]any{basket})
	options := e.options()
	first, err := e.SignalWithStartWorkflow(e.Context, options.ID, "add", "a", options, basket)
	require.NoError(t, err)
	second, err := e.SignalWithStartWorkflow(e.Context, options.ID, "add", "b", options, basket)
	require.NoError(t, err)
	require.Equal(t, first.GetRunID(), second.GetRunID())
	require.NoError(t, e.SignalWorkflow(e.Context, options.ID, "", "done", nil))
	require.Equal(t, []string{"a", "b"}, result[[]string](e, first))
}

// counter changes by updates, whose validator refuses negative amounts, and ends by a signal.
func counter(ctx workflow.Context) (int, error) {
	total := 0
	handler := func(ctx workflow.Context, amount int) (int, error) {
		if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
			return 0, err
		}
		if amount == 13 {
			return 0, temporal.NewApplicationError("unlucky", "Superstition")
		}
		total += amount
		return total, nil
	}
	validator := func(amount int) error {
		if amount < 0 {
			return errors.New("negative amount")
		}
		return nil
	}
	err := workflow.SetUpdateHandlerWithOptions(ctx, "add", handler, workflow.UpdateHandlerOptions{Validator: validator})
	if err != nil {
		return 0, err
	}
	workflow.GetSignalChannel(ctx, "done").Receive(ctx, nil)
	return total, nil
}

func addition(run client.WorkflowRun, amount int) client.UpdateWorkflowOptions {
	return client.UpdateWorkflowOptions{
		WorkflowID: run.GetID(), UpdateName: "add", Args: []any{amount}, WaitForStage: client.WorkflowUpdateStageCompleted,
	}
}

func (e *env) update(options client.UpdateWorkflowOptions) (total int, err error) {
	handle, err := e.UpdateWorkflow(e.Context, options)
	if err == nil {
		err = handle.Get(e.Context, &total)
	}
	return
}

func TestUpdates(t *testing.T) {
	e := setup(t)
	e.worker([]any{counter})
	run := e.start(counter)

	total, err := e.update(addition(run, 5))
	require.NoError(t, err)
	require.Equal(t, 5, total)

	accepted := len(only(e.history(run), enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED))
	before := len(e.history(run))
	_, err = e.update(addition(run, -1))
	require.Equal(t, "negative amount", applicationError(t, err).Message())
	require.Len(t, e.history(run), before, "a rejected update leaves no event")
	require.Equal(t, 1, accepted)

	_, err = e.update(addition(run, 13))
	require.Equal(t, "Superstition", applicationError(t, err).Type())

	once := addition(run, 10)
	once.UpdateID = "once"
	for range 2 {
		total, err = e.update(once)
		require.NoError(t, err)
		require.Equal(t, 15, total, "an update id is applied once")
	}
	handle := e.GetWorkflowUpdateHandle(client.GetWorkflowUpdateHandleOptions{WorkflowID: run.GetID(), UpdateID: "once"})
	require.NoError(t, handle.Get(e.Context, &total))
	require.Equal(t, 15, total)

	require.NoError(t, e.SignalWorkflow(e.Context, run.GetID(), "", "done", nil))
	require.Equal(t, 15, result[int](e, run))
	events := e.history(run)
	require.Len(t, only(events, enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED), 3)
	require.Len(t, only(events, enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED), 3)
}

func TestUpdateWithStart(t *testing.T) {
	e := setup(t)
	e.worker([]any{counter})
	options := e.options()
	options.WorkflowIDConflictPolicy = enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
	for total := 3; total <= 6; total += 3 {
		start := e.NewWithStartWorkflowOperation(options, counter)
		handle, err := e.UpdateWithStartWorkflow(e.Context, client.UpdateWithStartWorkflowOptions{
			StartWorkflowOperation: start,
			UpdateOptions: client.UpdateWorkflowOptions{
				UpdateName: "add", Args: []any{3}, WaitForStage: client.WorkflowUpdateStageCompleted,
			},
		})
		require.NoError(t, err)
		var got int
		require.NoError(t, handle.Get(e.Context, &got))
		require.Equal(t, total, got)
	}
	require.NoError(t, e.SignalWorkflow(e.Context, options.ID, "", "done", nil))
	require.Equal(t, 6, result[int](e, e.GetWorkflow(e.Context, options.ID, "")))
}
