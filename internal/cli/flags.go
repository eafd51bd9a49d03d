package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// twoDashes gives long flags with one dash, which releases have accepted as Go's flag package
// does, two dashes. Whatever follows a flag that takes a value is that value, even if it
// starts with a dash.
func twoDashes(root *cobra.Command, args []string) []string {
	changed := make([]string, 0, len(args))
	cmd := root
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(changed, args[i:]...)
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			if child := command(cmd, arg); child != nil {
				cmd = child
			}
			changed = append(changed, arg)
			continue
		}
		long := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		if len(long) > 1 {
			arg = "--" + long
		}
		changed = append(changed, arg)
		if flag := cmd.Flags().Lookup(long); flag != nil && flag.NoOptDefVal == "" && i+1 < len(args) {
			i++
			changed = append(changed, args[i])
		}
	}
	return changed
}

func command(parent *cobra.Command, name string) *cobra.Command {
	for _, child := range parent.Commands() {
		if child.Name() == name {
			return child
		}
	}
	return nil
}

// flagError explains what is wrong with a flag.
func flagError(cmd *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		return unknownFlag(cmd, e.GetSpecifiedName())
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return Usagef(cmd, "--%s needs a value", e.GetSpecifiedName())
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return Usagef(cmd, "--%s: %q %s", e.GetFlag().Name, e.GetValue(), wrongValue(e.GetFlag(), e.GetValue()))
	}
	return Usagef(cmd, "%w", err)
}

// wrongValue says why the flag does not accept a value.
func wrongValue(flag *pflag.Flag, value string) string {
	switch flag.Value.Type() {
	case "duration":
		return "is not a time; write " + exampleTime(value)
	case "bool":
		return "is neither true nor false"
	case "float64":
		return "is not a number"
	}
	return "is not a " + flag.Value.Type()
}

// exampleTime returns the time that the user probably meant.
func exampleTime(value string) string {
	if _, err := strconv.ParseFloat(value, 64); err == nil {
		return value + "s"
	}
	if days, err := strconv.Atoi(strings.TrimSuffix(value, "d")); err == nil {
		return strconv.Itoa(24*days) + "h"
	}
	return "a number with a unit, such as 90s or 2m"
}

func unknownFlag(cmd *cobra.Command, typed string) error {
	dashes := "--"
	if len(typed) == 1 {
		dashes = "-"
	}
	err := Usagef(cmd, "unknown flag %s%s", dashes, typed)
	if e, ok := errors.AsType[*Error](err); ok {
		if similar := similarFlag(cmd, typed); similar != "" {
			e.Hint = fmt.Sprintf("did you mean --%s? %s", similar, e.Hint)
		}
	}
	return err
}

// similarFlag returns the flag that the user probably meant, by cobra's rule for commands.
func similarFlag(cmd *cobra.Command, typed string) string {
	flags := &cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	if similar := flags.SuggestionsFor(typed); len(similar) > 0 {
		return similar[0]
	}
	return ""
}
