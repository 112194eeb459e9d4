export { byteText, percent, reportHtml, tokenText, type ModelName, type ReportData } from './html.js';
