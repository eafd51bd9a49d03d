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
		return Usagef(cmd, "--%s: %.100q %s", e.GetFlag().Name, e.GetValue(), wrongValue(e.GetFlag(), e.GetValue()))
	}
	if e, ok := errors.AsType[*pflag.InvalidSyntaxError](err); ok {
		return Usagef(cmd, "%.100q is not a flag", e.GetSpecifiedFlag())
	}
	return Usagef(cmd, "%w", err)
}

// refuseEmpty refuses a flag whose value is an empty text. It is probably a variable of a
// script that was not set, and would mean something else: another machine, or no limit.
func refuseEmpty(cmd *cobra.Command, _ []string) error {
	var empty string
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if text := f.Value.String(); empty == "" && (text == "" || f.Value.Type() == "stringSlice" && text == "[]") {
			empty = f.Name
		}
	})
	if empty != "" {
		return Usagef(cmd, "--%s is empty; give it a value, or leave it out", empty)
	}
	return nil
}

// wrongValue says why the flag does not accept a value.
func wrongValue(flag *pflag.Flag, value string) string {
	switch flag.Value.Type() {
	case "duration":
		return "is not a time; write " + exampleTime(value)
	case "bool":
		return "is neither true nor false"
	case "float64":
		if number := strings.TrimRight(value, "abcdefghijklmnopqrstuvwxyz "); number != value && isNumber(number) {
			return "is not a number; write " + number
		}
		return "is not a number"
	case "stringSlice":
		return "has a quote that does not belong there; write values with commas between them"
	}
	return "is not a value that it takes"
}

func isNumber(text string) bool {
	_, err := strconv.ParseFloat(text, 64)
	return err == nil
}

// exampleTime returns the time that the user probably meant.
func exampleTime(value string) string {
	if isNumber(value) && strings.Trim(value, "0123456789.") == "" {
		return value + "s"
	}
	const maxDays = 36500
	if days, err := strconv.Atoi(strings.TrimSuffix(value, "d")); err == nil && days > 0 && days < maxDays {
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
		} else if below := commandWith(cmd, typed); below != nil {
			e.Hint = fmt.Sprintf("put it after the command, as in '%s --%s'", below.CommandPath(), typed)
		}
	}
	return err
}

// commandWith returns a command below another that has a flag, or nil.
func commandWith(parent *cobra.Command, flag string) *cobra.Command {
	for _, child := range parent.Commands() {
		if child.Flags().Lookup(flag) != nil {
			return child
		}
		if below := commandWith(child, flag); below != nil {
			return below
		}
	}
	return nil
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
