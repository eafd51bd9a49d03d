package main

import "context"

func runIdentity(context.Context, []string, streams) error { return usagef("not built yet") }
