// Renders the Helm chart as `helm template` would, for machines where Helm is not to be had:
// Go's text/template with sprig, both from Debian, and Helm's own few functions. In: the chart's
// folder, and on stdin JSON with Values, Release and Chart. Out: all templates, one YAML stream.
// It is a check of the chart, not a Helm: no dependencies, hooks, files or look-ups.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
)

func main() {
	var context map[string]interface{}
	check(json.NewDecoder(os.Stdin).Decode(&context))
	templates := template.New("chart").Option("missingkey=error").Funcs(sprig.TxtFuncMap())
	templates.Funcs(template.FuncMap{
		"fail": func(message string) (string, error) { return "", errors.New(message) },
		// JSON is YAML too, and needs no library.
		"toYaml": func(value interface{}) (string, error) {
			text, err := json.MarshalIndent(value, "", "  ")
			return string(text), err
		},
		"include": func(name string, data interface{}) (string, error) {
			var text strings.Builder
			err := templates.ExecuteTemplate(&text, name, data)
			return text.String(), err
		},
	})
	paths, err := filepath.Glob(filepath.Join(os.Args[1], "templates", "*"))
	check(err)
	sort.Strings(paths)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		check(err)
		template.Must(templates.New(filepath.Base(path)).Parse(string(text)))
	}
	for _, path := range paths {
		if filepath.Ext(path) == ".yaml" {
			fmt.Println("---")
			check(templates.ExecuteTemplate(os.Stdout, filepath.Base(path), context))
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
