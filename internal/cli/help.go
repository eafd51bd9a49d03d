package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
)

// helpWidth is the line width of help texts.
const helpWidth = 90

func printHelp(w io.Writer, cmd *cobra.Command) {
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "usage: %s COMMAND [flags]\n\n%s\n\ncommands:\n", cmd.CommandPath(), cmd.Short)
		printCommands(w, cmd)
	} else {
		fmt.Fprintf(w, "usage: %s\n\n%s\n", cmd.UseLine(), about(cmd))
	}
	if flags := cmd.LocalFlags(); flags.HasAvailableFlags() {
		fmt.Fprintf(w, "\nflags:\n%s", flags.FlagUsagesWrapped(helpWidth))
	}
}

func about(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return cmd.Short
}

// printCommands lists the commands below a command, and those of groups in full.
func printCommands(w io.Writer, parent *cobra.Command) {
	skip := len(parent.CommandPath()) + 1
	width := 0
	all := commandsBelow(parent)
	for _, cmd := range all {
		width = max(width, len(cmd.CommandPath())-skip)
	}
	for _, cmd := range all {
		fmt.Fprintf(w, "  %-*s  %s\n", width, cmd.CommandPath()[skip:], cmd.Short)
	}
}

func commandsBelow(parent *cobra.Command) (all []*cobra.Command) {
	for _, cmd := range parent.Commands() {
		switch {
		case !cmd.IsAvailableCommand():
		case cmd.HasAvailableSubCommands():
			all = append(all, commandsBelow(cmd)...)
		default:
			all = append(all, cmd)
		}
	}
	return all
}

// defineHelp gives a command and its subcommands a help flag like cobra's, with our own text.
func defineHelp(cmd *cobra.Command) {
	cmd.Flags().BoolP("help", "h", false, "show this help")
	for _, child := range cmd.Commands() {
		defineHelp(child)
	}
}

func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "show what a command does", DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			switch {
			case err != nil:
				return Usagef(cmd, "%w", err)
			case len(rest) > 0:
				return unknownCommand(target, rest[0])
			}
			printHelp(cmd.OutOrStdout(), target)
			return nil
		},
	}
}

func completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish|powershell", Short: "print a shell's completion script", DisableFlagsInUseLine: true,
		Long: "Prints a script that completes commands and flags. For bash, in the current shell:\n\n" +
			"  source <(PROGRAM completion bash)",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return Usagef(cmd, "want one shell: bash, zsh, fish or powershell")
			}
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(out)
			}
			return Usagef(cmd, "%q is none of bash, zsh, fish and powershell", args[0])
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), buildinfo.Version())
			return err
		},
	}
}
