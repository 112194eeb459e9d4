import { BarChart, LineChart } from 'echarts/charts';
import { GridComponent, LegendComponent, MarkLineComponent, TitleComponent } from 'echarts/components';
import { init, use } from 'echarts/core';
import { SVGRenderer } from 'echarts/renderers';

/*
 * What the charts use of ECharts. The build makes one file of it (scripts/bundle-echarts.mjs): the whole package is half of what
 * an installation of this one would write.
 */
use([BarChart, LineChart, GridComponent, LegendComponent, MarkLineComponent, TitleComponent, SVGRenderer]);
export { init };
