package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"
)

func square(_ workflow.Context, n int) (int, error) {
	if n < 0 {
		return 0, temporal.NewApplicationError("not a natural number", "Negative")
	}
	return n * n, nil
}

func TestChildWorkflows(t *testing.T) {
	e := setup(t)
	const children = 20
	sumOfSquares := func(ctx workflow.Context) (sum int, err error) {
		var futures []workflow.ChildWorkflowFuture
		for n := range children {
			id := fmt.Sprintf("%s/%d", workflow.GetInfo(ctx).WorkflowExecution.ID, n)
			child := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{WorkflowID: id})
			futures = append(futures, workflow.ExecuteChildWorkflow(child, square, n))
		}
		for _, future := range futures {
			var squared int
			if err = future.Get(ctx, &squared); err != nil {
				return
			}
			sum += squared
		}
		return
	}
	e.worker([]any{sumOfSquares, square})

	run := e.start(sumOfSquares)
	require.Equal(t, 2470, result[int](e, run))
	events := e.history(run)
	for _, kind := range []enumspb.EventType{
		enumspb.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
		enumspb.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED,
		enumspb.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED,
	} {
		require.Len(t, only(events, kind), children, kind)
	}
	child := e.historyOf(run.GetID()+"/3", "")[0].GetWorkflowExecutionStartedEventAttributes()
	require.Equal(t, run.GetRunID(), child.ParentWorkflowExecution.RunId)
	require.Equal(t, run.GetID(), child.RootWorkflowExecution.WorkflowId)
}

func TestChildThatFailsAndChildThatExists(t *testing.T) {
	e := setup(t)
	failing := func(ctx workflow.Context) error { return workflow.ExecuteChildWorkflow(ctx, square, -1).Get(ctx, nil) }
	taken := func(ctx workflow.Context, id string) error {
		ctx = workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{WorkflowID: id})
		return workflow.ExecuteChildWorkflow(ctx, square, 1).Get(ctx, nil)
	}
	e.worker([]any{failing, taken, square, basket})

	err := e.start(failing).Get(e.Context, nil)
	var child *temporal.ChildWorkflowExecutionError
	require.True(t, errors.As(err, &child), "%v", err)
	require.Equal(t, "Negative", applicationError(t, err).Type())

	open := e.start(basket)
	run := e.start(taken, open.GetID())
	require.ErrorContains(t, run.Get(e.Context, nil), "already")
	require.Len(t, only(e.history(run), enumspb.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED), 1)
}

func TestParentClosePolicies(t *testing.T) {
	e := setup(t)
	policies := map[enumspb.ParentClosePolicy]enumspb.WorkflowExecutionStatus{
		enumspb.PARENT_CLOSE_POLICY_TERMINATE:      enumspb.WORKFLOW_EXECUTION_STATUS_TERMINATED,
		enumspb.PARENT_CLOSE_POLICY_REQUEST_CANCEL: enumspb.WORKFLOW_EXECUTION_STATUS_CANCELED,
		enumspb.PARENT_CLOSE_POLICY_ABANDON:        enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING,
	}
	sleeper := func(ctx workflow.Context) error { return workflow.Sleep(ctx, time.Hour) }
	leave := func(ctx workflow.Context, policy enumspb.ParentClosePolicy) error {
		ctx = workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
			WorkflowID:        workflow.GetInfo(ctx).WorkflowExecution.ID + "/child",
			ParentClosePolicy: policy,
		})
		return workflow.ExecuteChildWorkflow(ctx, sleeper).GetChildWorkflowExecution().Get(ctx, nil)
	}
	e.worker([]any{leave, sleeper})

	for policy, expected := range policies {
		run := e.start(leave, policy)
		require.NoError(t, run.Get(e.Context, nil))
		status := func() enumspb.WorkflowExecutionStatus {
			description, err := e.DescribeWorkflowExecution(e.Context, run.GetID()+"/child", "")
			require.NoError(t, err)
			return description.WorkflowExecutionInfo.Status
		}
		e.eventually(policy.String()+" is carried out", func() bool { return status() == expected })
		if policy == enumspb.PARENT_CLOSE_POLICY_ABANDON {
			require.NoError(t, e.TerminateWorkflow(e.Context, run.GetID()+"/child", "", "test ends"))
		}
	}
}

func TestSignalAndCancelOfOtherWorkflows(t *testing.T) {
	e := setup(t)
	sleeper := func(ctx workflow.Context) error { return workflow.Sleep(ctx, time.Hour) }
	reach := func(ctx workflow.Context, basketID, sleeperID string) error {
		for _, signal := range []string{"add", "done"} {
			if err := workflow.SignalExternalWorkflow(ctx, basketID, "", signal, "from afar").Get(ctx, nil); err != nil {
				return err
			}
		}
		return workflow.RequestCancelExternalWorkflow(ctx, sleeperID, "").Get(ctx, nil)
	}
	e.worker([]any{reach, basket, sleeper})

	basketRun, sleeperRun := e.start(basket), e.start(sleeper)
	require.NoError(t, e.start(reach, basketRun.GetID(), sleeperRun.GetID()).Get(e.Context, nil))
	require.Equal(t, []string{"from afar"}, result[[]string](e, basketRun))
	var canceled *temporal.CanceledError
	err := sleeperRun.Get(e.Context, nil)
	require.True(t, errors.As(err, &canceled), "%v", err)

	run := e.start(reach, "nobody-"+e.queue, "nobody")
	require.Error(t, run.Get(e.Context, nil))
	require.Len(t, only(e.history(run), enumspb.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED), 1)
}
